//! `orch token`: tokens by which machines join. Each is a bootstrap token, a Secret in `kube-system`, as with kubeadm; the printed form
//! carries the hash of the cluster's CA, so that a machine verifies the server before it says anything.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Endpoints, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::admin::{Admin, AdminSettings, print_table, say};
use super::error::CmdError;
use super::token::Token;
use crate::client::{Client, DeleteOptions, PatchKind};
use crate::rt::{Clock, SystemClock, TaskGroup, random};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const GROUP: &str = "system:bootstrappers:orch:default-node-token";
/// The Secret that holds the cluster's own token once it was changed.
pub const CLUSTER_TOKEN: &str = "orch-token";

/// What `orch token` takes.
#[derive(Debug, Clone, Args)]
pub struct TokenCommand {
    #[command(flatten)]
    pub admin: AdminSettings,
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Make a token and print it
    Create {
        /// How long it is good: 30m, 24h, 7d; 0 is for ever
        #[arg(long, default_value = "24h", value_parser = parse_ttl, value_name = "TIME")]
        ttl: Duration,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Print the command that joins a machine instead
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens, without their secrets
    List {
        /// How they are printed
        #[arg(long, short, value_enum, default_value = "text")]
        output: Output,
    },
    /// Delete tokens; they stop working at once
    Delete {
        /// Tokens, or their ids
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
    /// Change the cluster's own token (DATA_DIR/token of the servers) and print the new one; the old one stops working at once
    Rotate {
        /// The new secret [default: a random one]
        #[arg(long, value_name = "SECRET")]
        new_token: Option<String>,
    },
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// `90s`, `30m`, `24h`, `7d`; `0` is for ever.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || format!("{text:?} is no time such as 30m, 24h or 7d");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.checked_mul(unit).ok_or_else(wrong)?))
}

/// Runs it.
///
/// # Errors
/// [`CmdError`].
pub async fn run(command: TokenCommand) -> Result<(), CmdError> {
    let tasks = TaskGroup::new();
    let admin = command.admin.connect(&tasks)?;
    match command.action {
        Action::Create { ttl, description, print_join_command } => {
            let token = create(&admin.client, ttl, &description).await?;
            let token = secure(&admin, token)?;
            if print_join_command {
                say(format_args!("orch agent --join {} --token {token}", server(&admin).await?));
            } else {
                say(token);
            }
        }
        Action::List { output } => list(&admin.client, output).await?,
        Action::Delete { tokens } => {
            for token in tokens {
                delete(&admin.client, &token).await?;
            }
        }
        Action::Rotate { new_token } => {
            let secret = new_token.unwrap_or_else(|| random::suffix(32));
            rotate(&admin.client, &secret).await?;
            say(secure(&admin, secret)?);
        }
    }
    tasks.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

/// The form that carries the hash of the CA.
fn secure(admin: &Admin, secret: String) -> Result<Token, CmdError> {
    let hash = admin.access.ca_fingerprint();
    let hash = hash.ok_or_else(|| CmdError::Setting("the kubeconfig has no certificate authority of the cluster".to_owned()))?;
    Ok(Token { ca_fingerprint: Some(hash), secret })
}

async fn create(client: &Client, ttl: Duration, description: &str) -> Result<String, CmdError> {
    let (id, secret) = (random::suffix(6), random::suffix(16));
    let mut texts = vec![
        ("token-id", id.clone()),
        ("token-secret", secret.clone()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("usage-bootstrap-signing", "true".to_owned()),
        ("auth-extra-groups", GROUP.to_owned()),
    ];
    if !ttl.is_zero() {
        let end = SignedDuration::try_from(ttl).ok().and_then(|ttl| SystemClock.now().checked_add(ttl).ok());
        let end = end.and_then(|end| Timestamp::from_second(end.as_second()).ok());
        let end = end.ok_or_else(|| CmdError::Setting("that time is too long; 0 is for ever".to_owned()))?;
        texts.push(("expiration", end.to_string()));
    }
    if !description.is_empty() {
        texts.push(("description", description.to_owned()));
    }
    let data = texts.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    let secret_object = Secret {
        metadata: ObjectMeta {
            name: Some(format!("{PREFIX}{id}")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    };
    client.create(&secret_object).await?;
    Ok(format!("{id}.{secret}"))
}

/// Where machines reach a server: what the Service `kubernetes` says; the kubeconfig's may be loopback.
async fn server(admin: &Admin) -> Result<String, CmdError> {
    let endpoints: Endpoints = admin.client.get("default", "kubernetes").await?;
    let subset = endpoints.subsets.unwrap_or_default().into_iter().next().unwrap_or_default();
    let address = subset.addresses.into_iter().flatten().next().and_then(|address| address.ip.parse::<IpAddr>().ok());
    let port = subset.ports.into_iter().flatten().next().and_then(|port| u16::try_from(port.port).ok());
    Ok(match address.zip(port) {
        Some((address, port)) => format!("https://{}", std::net::SocketAddr::new(address, port)),
        None => admin.access.server.clone(),
    })
}

/// What a list says of a token.
struct Row {
    id: String,
    description: String,
    expiration: Option<Timestamp>,
    usages: Vec<String>,
    groups: Vec<String>,
}

impl Row {
    fn of(secret: &Secret) -> Self {
        let data = secret.data.as_ref();
        let text = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        let usages = data.into_iter().flatten().filter(|(_, value)| value.0 == b"true");
        Self {
            id: text("token-id").unwrap_or_default(),
            description: text("description").unwrap_or_default(),
            expiration: text("expiration").and_then(|end| end.parse().ok()),
            usages: usages.filter_map(|(key, _)| key.strip_prefix("usage-bootstrap-")).map(str::to_owned).collect(),
            groups: text("auth-extra-groups")
                .unwrap_or_default()
                .split(',')
                .filter(|one| !one.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id, "description": self.description, "expiration": self.expiration.map(|end| end.to_string()),
            "usages": self.usages, "groups": self.groups,
        })
    }

    fn columns(&self, now: Timestamp) -> Vec<String> {
        let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
        let left = self.expiration.map(|end| left(end, now));
        vec![
            self.id.clone(),
            left.unwrap_or_else(|| "<forever>".to_owned()),
            self.expiration.map_or_else(|| "<never>".to_owned(), |end| end.to_string()),
            or_none(&self.usages.join(",")),
            or_none(&self.description),
            or_none(&self.groups.join(",")),
        ]
    }
}

fn left(end: Timestamp, now: Timestamp) -> String {
    let seconds = end.duration_since(now).as_secs();
    match seconds {
        ..=0 => "<invalid>".to_owned(),
        1..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

async fn list(client: &Client, output: Output) -> Result<(), CmdError> {
    let secrets = client.list::<Secret>(NAMESPACE, "fieldSelector=type%3Dbootstrap.kubernetes.io/token").await?;
    let rows: Vec<Row> = secrets.items.iter().map(Row::of).collect();
    match output {
        Output::Json => say(format_args!("{:#}", Value::Array(rows.iter().map(Row::json).collect()))),
        Output::Text => {
            let now = SystemClock.now();
            let columns: Vec<Vec<String>> = rows.iter().map(|row| row.columns(now)).collect();
            print_table(&["TOKEN ID", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"], &columns);
        }
    }
    Ok(())
}

/// The id of a token in any of its forms.
fn id_of(text: &str) -> Result<String, CmdError> {
    let secret = Token::parse(text).map_err(CmdError::Setting)?.secret;
    let id = secret.split_once('.').map_or(secret.as_str(), |(id, _)| id).to_owned();
    if id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()) {
        return Ok(id);
    }
    Err(CmdError::Setting(
        "that is no bootstrap token and no id of one (orch token list); `orch token rotate` changes the cluster's own token"
            .to_owned(),
    ))
}

async fn delete(client: &Client, text: &str) -> Result<(), CmdError> {
    let id = id_of(text)?;
    match client.delete::<Secret>(NAMESPACE, &format!("{PREFIX}{id}"), &DeleteOptions::default()).await {
        Err(error) if error.is_not_found() => {
            return Err(CmdError::Setting(format!("there is no token {id:?} (orch token list)")));
        }
        deleted => deleted?,
    }
    say(format_args!("token {id:?} deleted"));
    Ok(())
}

async fn rotate(client: &Client, secret: &str) -> Result<(), CmdError> {
    let data = [("token".to_owned(), ByteString(secret.as_bytes().to_vec()))];
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(CLUSTER_TOKEN.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("orch.io/token".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    };
    match client.create(&object).await {
        Err(error) if error.is_already_exists() => {
            let patch = json!({ "data": object.data });
            client.patch::<Secret>(NAMESPACE, CLUSTER_TOKEN, None, PatchKind::Merge, &patch).await?;
        }
        created => drop(created?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ids() {
        for (text, seconds) in
            [("0", Some(0)), ("90s", Some(90)), ("30m", Some(1_800)), ("24h", Some(86_400)), ("7d", Some(604_800))]
        {
            assert_eq!(parse_ttl(text).ok().map(|ttl| ttl.as_secs()), seconds, "{text}");
        }
        for wrong in ["", "h", "1w", "-1h", "1.5h", "99999999999999999d"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong}");
        }
        let hash = "ab".repeat(32);
        for text in ["abcdef", "abcdef.0123456789abcdef", &format!("K10{hash}::node:abcdef.0123456789abcdef")] {
            assert_eq!(id_of(text).unwrap(), "abcdef", "{text}");
        }
        assert!(id_of("x").is_err() && id_of(&format!("K10{hash}::node:clustersecret")).is_err());
    }

    #[test]
    fn what_a_list_says() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (end, expected) in [
            ("2026-01-01T00:01:00Z", "60s"),
            ("2026-01-01T01:00:00Z", "60m"),
            ("2026-01-02T00:00:00Z", "24h"),
            ("2026-01-08T00:00:00Z", "7d"),
            ("2025-12-31T23:59:59Z", "<invalid>"),
        ] {
            assert_eq!(left(end.parse().unwrap(), now), expected);
        }
    }
}
