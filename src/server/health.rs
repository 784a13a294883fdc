//! `/healthz`, `/livez` and `/readyz`: named checks, one by one or all together, in upstream's form.

use std::sync::Arc;

use ::http::StatusCode;
use parking_lot::RwLock;

use super::respond;
use crate::http::HttpResponse;

/// Says what is wrong, if something is.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Which of the three paths a check counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/livez` and `/healthz` too: a restart would help.
    Live,
    /// `/readyz` only: requests should go elsewhere for a while.
    Ready,
}

/// The checks of a server, in the order in which they were added.
#[derive(Default)]
pub struct Health(RwLock<Vec<(String, Probe, Check)>>);

impl Health {
    /// Adds a check under a name (`etcd`, `poststarthook/rbac/bootstrap-roles`).
    pub fn add(&self, name: &str, probe: Probe, check: Check) {
        self.0.write().push((name.to_owned(), probe, check));
    }

    /// The names of the checks that fail now, with why: what keeps `/readyz` from saying ok.
    pub fn failing(&self) -> Vec<(String, String)> {
        let checks = self.0.read().clone();
        checks.into_iter().filter_map(|(name, _, check)| check().err().map(|why| (name, why))).collect()
    }

    /// Answers `/readyz`, `/livez/etcd`, `/healthz?verbose&exclude=etcd`; `None` for a check that there is not.
    pub fn answer(&self, path: &str, query: &[(String, String)]) -> Option<HttpResponse> {
        let mut segments = path.trim_matches('/').splitn(2, '/');
        let (endpoint, only) = (segments.next().unwrap_or(""), segments.next());
        let checks: Vec<_> = {
            let all = self.0.read();
            let counts = |probe: Probe| endpoint == "readyz" || probe == Probe::Live;
            all.iter().filter(|(_, probe, _)| counts(*probe)).cloned().collect()
        };
        if let Some(only) = only {
            let (name, _, check) = checks.iter().find(|(name, ..)| name == only)?;
            return Some(match check() {
                Ok(()) => respond::text(StatusCode::OK, "ok"),
                Err(why) => {
                    let text = format!("internal server error: {name}: {why}\n");
                    respond::text(StatusCode::INTERNAL_SERVER_ERROR, text)
                }
            });
        }
        let excluded: Vec<&str> = query.iter().filter(|(key, _)| key == "exclude").map(|(_, value)| value.as_str()).collect();
        let (mut lines, mut failed) = (String::new(), Vec::new());
        for (name, _, check) in &checks {
            if excluded.contains(&name.as_str()) {
                lines.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            match check() {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(why) => {
                    tracing::debug!(endpoint, check = %name, %why, "a health check fails");
                    lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                    failed.push(name.as_str());
                }
            }
        }
        if !failed.is_empty() {
            tracing::info!(endpoint, failed = failed.join(","), "health check failed");
            lines.push_str(&format!("{endpoint} check failed\n"));
            return Some(respond::text(StatusCode::INTERNAL_SERVER_ERROR, lines));
        }
        if query.iter().any(|(key, _)| key == "verbose") {
            lines.push_str(&format!("{endpoint} check passed\n"));
            return Some(respond::text(StatusCode::OK, lines));
        }
        Some(respond::text(StatusCode::OK, "ok"))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn answers_by_table() {
        let health = Health::default();
        health.add("ping", Probe::Live, Arc::new(|| Ok(())));
        health.add("store", Probe::Ready, Arc::new(|| Err("away".to_owned())));
        let table: &[(&str, &[&str], u16, &str)] = &[
            ("/livez", &[], 200, "ok"),
            ("/livez", &["verbose"], 200, "[+]ping ok\nlivez check passed\n"),
            ("/readyz", &[], 500, "[+]ping ok\n[-]store failed: reason withheld\nreadyz check failed\n"),
            ("/readyz", &["exclude=store"], 200, "ok"),
            ("/readyz/ping", &[], 200, "ok"),
            ("/readyz/store", &[], 500, "internal server error: store: away\n"),
        ];
        for (path, query, status, body) in table {
            let query = crate::server::request_info::parse_query(&query.join("&"));
            let response = health.answer(path, &query).unwrap();
            assert_eq!(response.status().as_u16(), *status, "{path}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(std::str::from_utf8(&bytes).unwrap(), *body, "{path}");
        }
        assert!(health.answer("/livez/store", &[]).is_none());
        assert_eq!(health.failing(), [("store".to_owned(), "away".to_owned())]);
    }
}
