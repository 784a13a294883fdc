//! Env files (KEP-3721): `NAME='value'`, one after the other. Values stand in single quotes, which may span lines; nothing is
//! expanded. Files lie in volumes that containers write to, so that reading them never leaves the volume.

use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Bytes of a file at most.
const MAX_BYTES: u64 = 1 << 20;

/// The value of a variable; `None` if the file does not set it. Of several, the last counts.
///
/// # Errors
/// What is wrong with the file.
pub fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let (mut rest, mut line, mut found) = (text, 1, None);
    loop {
        let skipped = rest.len() - rest.trim_start().len();
        line += rest[..skipped].matches('\n').count();
        rest = &rest[skipped..];
        if rest.is_empty() {
            return Ok(found);
        }
        if rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(comment, _)| &rest[comment.len()..]);
            continue;
        }
        let wrong = |what: &str| format!("line {line}: {what}");
        let end = rest.find(['=', '\n']).unwrap_or(rest.len());
        let name = &rest[..end];
        let after = rest[end..].strip_prefix('=').ok_or_else(|| wrong("not of the form NAME='value'"))?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').ok_or_else(|| wrong("the closing quote is missing"))?,
            // Nothing directly after the `=`: an empty value.
            None if after.is_empty() || after.starts_with(char::is_whitespace) => ("", after),
            None => return Err(wrong("the value must stand in single quotes")),
        };
        let (tail, next) = after.split_once('\n').map_or((after, ""), |(tail, _)| (tail, &after[tail.len()..]));
        let tail = tail.trim_start();
        let is_comment = tail.is_empty() || tail.starts_with('#') && after.starts_with(char::is_whitespace);
        if !(is_comment || value.is_empty()) {
            return Err(wrong("unexpected text after the closing quote"));
        }
        if name == key {
            found = Some(value.to_owned());
        }
        line += value.matches('\n').count();
        rest = next;
    }
}

/// Reads a file below a volume; `None` if there is none. A link that leads out of the volume is an error.
///
/// # Errors
/// As the file system has it.
pub fn read(volume: &Path, path: &str) -> std::io::Result<Option<String>> {
    let folder = std::fs::File::open(volume)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(&folder, path.trim_start_matches('/'), how) {
        Ok(file) => std::fs::File::from(file),
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_single_quotes() {
        let text = "# comment\n\n  A='one'\nB='two\nlines $A'  # why\nEMPTY=\nA='again'\n";
        let table = [("A", Some("again")), ("B", Some("two\nlines $A")), ("EMPTY", Some("")), ("C", None)];
        for (key, expected) in table {
            assert_eq!(value(text, key).unwrap().as_deref(), expected, "{key}");
        }
        for wrong in ["A", "A = 'x'", "A=x", "A='x", "A='x'y", "A=\"x\"", "='x'"] {
            assert!(value(wrong, "A").is_err(), "{wrong}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "A='1'").unwrap();
        let volume = folder.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), volume.join("link")).unwrap();
        std::fs::write(volume.join("env"), "A='2'").unwrap();
        assert_eq!(read(&volume, "env").unwrap().as_deref(), Some("A='2'"));
        assert!(read(&volume, "none").unwrap().is_none());
        assert!(read(&volume, "link").is_err() && read(&volume, "../secret").is_err());
    }
}
