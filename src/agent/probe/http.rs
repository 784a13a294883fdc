//! HTTP probes and hooks: a GET; 200 to 399 is success. Redirects to the same host are followed, as upstream's
//! `probe/http.RedirectChecker` does.

use ::http::{HeaderMap, Request, Uri, header};
use k8s_openapi::api::core::v1::HTTPGetAction;

use super::{Ill, OUTPUT_BYTES, Target, Verdict, port};
use crate::http::connector::Endpoint;
use crate::http::empty;
use crate::http::once::{Once, Protocol};

const MAX_REDIRECTS: usize = 10;

/// Sends the request and judges the answer.
pub(super) async fn get(once: &Once, get: &HTTPGetAction, target: &Target<'_>, agent: &str) -> Verdict {
    let (mut endpoint, mut path) = place(get, target)?;
    for _ in 0..=MAX_REDIRECTS {
        let url = url(&endpoint, &path);
        let request = request(&path, get, agent).map_err(|error| error.to_string())?;
        let answer = once.exchange(&endpoint, Protocol::Http1, request, OUTPUT_BYTES).await;
        let answer = answer.map_err(|error| Ill::of(format!("Get \"{url}\": {error}"), error.as_ref()))?;
        let status = answer.head.status;
        if status.is_redirection()
            && let Some((next, next_path)) = location(&answer.head.headers, &endpoint, &path)
        {
            if next.host != endpoint.host {
                let body = String::from_utf8_lossy(&answer.body);
                return Ok(Some(format!("Probe terminated redirects, Response body: {body}")));
            }
            (endpoint, path) = (next, next_path);
            continue;
        }
        return match status.as_u16() {
            200..=399 => Ok(None),
            code => Err(format!("HTTP probe failed with statuscode: {code}").into()),
        };
    }
    Err(format!("Get \"{}\": stopped after {MAX_REDIRECTS} redirects", url(&endpoint, &path)).into())
}

/// Where a probe looks.
///
/// # Errors
/// In the kubelet's words, when there is no such port or address.
pub(super) fn target_url(get: &HTTPGetAction, target: &Target<'_>) -> Result<String, String> {
    let (endpoint, path) = place(get, target)?;
    Ok(url(&endpoint, &path))
}

fn place(get: &HTTPGetAction, target: &Target<'_>) -> Result<(Endpoint, String), String> {
    let named = get.host.clone().filter(|host| !host.is_empty());
    let tls = get.scheme.as_deref() == Some("HTTPS");
    let endpoint = Endpoint::new(tls, target.host(named)?, port(&get.port, target.container)?);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    Ok((endpoint, if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }))
}

fn url(endpoint: &Endpoint, path: &str) -> String {
    format!("{}://{}{path}", if endpoint.tls { "https" } else { "http" }, endpoint.authority())
}

fn request(path: &str, get: &HTTPGetAction, agent: &str) -> Result<crate::http::HttpRequest, ::http::Error> {
    let mut request = Request::get(path);
    let own = get.http_headers.as_deref().unwrap_or(&[]);
    let has = |name: &str| own.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    for (name, value) in [("user-agent", agent), ("accept", "*/*")] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    // An empty value takes a default header away.
    for header in own.iter().filter(|header| !header.value.is_empty()) {
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    request.body(empty())
}

/// Where a redirect leads: an endpoint and a path there.
fn location(headers: &HeaderMap, from: &Endpoint, path: &str) -> Option<(Endpoint, String)> {
    let text = headers.get(header::LOCATION)?.to_str().ok()?;
    if let Some(rest) = text.strip_prefix("//") {
        let scheme = if from.tls { "https" } else { "http" };
        return absolute(&format!("{scheme}://{rest}"));
    }
    if text.contains("://") {
        return absolute(text);
    }
    let path = match text.as_bytes().first()? {
        b'/' => text.to_owned(),
        _ => {
            let folder = path.split('?').next().and_then(|path| path.rfind('/').map(|at| &path[..=at])).unwrap_or("/");
            format!("{folder}{text}")
        }
    };
    Some((from.clone(), path))
}

fn absolute(text: &str) -> Option<(Endpoint, String)> {
    let endpoint = Endpoint::parse(text).ok()?;
    let uri: Uri = text.parse().ok()?;
    Some((endpoint, uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_somewhere() {
        let from = Endpoint::new(false, "10.0.0.1", 8080);
        let table = [
            ("/b?c=d", "http://10.0.0.1:8080/b?c=d"),
            ("b", "http://10.0.0.1:8080/a/b"),
            ("http://10.0.0.1/x", "http://10.0.0.1:80/x"),
            ("https://other.example/", "https://other.example:443/"),
            ("//10.0.0.1:9/y", "http://10.0.0.1:9/y"),
        ];
        for (text, expected) in table {
            let headers = HeaderMap::from_iter([(header::LOCATION, text.parse().unwrap())]);
            let (endpoint, path) = location(&headers, &from, "/a/index?q").unwrap();
            assert_eq!(url(&endpoint, &path), expected, "{text}");
        }
        assert!(location(&HeaderMap::new(), &from, "/").is_none());
    }
}
