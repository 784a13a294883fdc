//! The rules for names, labels and the like, with upstream's messages (`apimachinery/pkg/util/validation`).
//!
//! Each function returns the messages of what is wrong; none means valid.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str, inner: impl Fn(u8) -> bool, edge: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => edge(*only),
        [first, middle @ .., last] => edge(*first) && edge(*last) && middle.iter().all(|byte| edge(*byte) || inner(*byte)),
    }
}

/// A DNS label: `web-1`.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(text, |byte| byte == b'-', is_lower) {
        wrong.push(if is_dns1123_subdomain(text) { "must not contain dots".to_owned() } else { LABEL_1123.to_owned() });
    }
    wrong
}

fn is_dns1123_subdomain(text: &str) -> bool {
    text.split('.').all(|label| is_label(label, |byte| byte == b'-', is_lower))
}

/// A DNS name: `web.example.com`.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_dns1123_subdomain(text) {
        wrong.push(SUBDOMAIN_1123.to_owned());
    }
    wrong
}

/// A DNS label that starts with a letter: names of Services.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(text, |byte| byte == b'-', is_lower) || !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        wrong.push(LABEL_1035.to_owned());
    }
    wrong
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !is_label(text, |byte| b"-_.".contains(&byte), |byte| byte.is_ascii_alphanumeric()) {
        wrong.push(LABEL_VALUE.to_owned());
    }
    wrong
}

/// A key of labels, annotations and the like: `app`, `example.com/app`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns1123_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            }
            name
        }
        _ => {
            wrong.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED_NAME.trim_start_matches("name part ")
            ));
            return wrong;
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        wrong.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_label(name, |byte| b"-_.".contains(&byte), |byte| byte.is_ascii_alphanumeric()) {
        wrong.push(QUALIFIED_NAME.to_owned());
    }
    wrong
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        wrong.push(CONFIG_KEY.to_owned());
    }
    if text == "." || text == ".." {
        wrong.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// The name of an environment variable (any printable ASCII but `=`, as since 1.34).
pub fn env_var_name(text: &str) -> Vec<String> {
    let valid = !text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
    if valid { Vec::new() } else { vec![ENV_NAME.to_owned()] }
}

/// A name that is one path segment: RBAC objects, whose names may hold colons.
pub fn path_segment(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text == "." || text == ".." {
        wrong.push(format!("may not be '{text}'"));
    }
    wrong.extend(["/", "%"].into_iter().filter(|part| text.contains(part)).map(|part| format!("may not contain '{part}'")));
    wrong
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65_535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".to_owned()] }
}

/// A port name (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|byte| is_lower(byte) || byte == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_rule() {
        let table: &[(fn(&str) -> Vec<String>, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "web-1", "1a"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns1123_subdomain, &["a", "a.b-c.d"], &["", ".a", "a..b", "A", "a_b"]),
            (dns1035_label, &["a1"], &["1a", "", "a."]),
            (label_value, &["", "A_b.c", "1"], &["-a", "a b"]),
            (qualified_name, &["app", "example.com/App_1"], &["", "/a", "a/", "a/b/c", "a b"]),
            (config_map_key, &["a.b_C-1", ".a"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a1-b"], &["", "1", "-a", "a--b", "abcdefghijklmnop"]),
        ];
        for (index, (rule, valid, invalid)) in table.iter().enumerate() {
            for text in *valid {
                assert_eq!(rule(text), Vec::<String>::new(), "rule {index} on {text:?}");
            }
            for text in *invalid {
                assert_ne!(rule(text), Vec::<String>::new(), "rule {index} on {text:?}");
            }
        }
    }
}
