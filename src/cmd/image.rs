//! `orch image`: the images of this node's engine, without a Docker client.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::error::CmdError;
use super::node::docker_host;
use crate::agent::image::collect::{Collector, Thresholds};
use crate::agent::image::ledger::Ledger;
use crate::agent::image::preload;
use crate::cri::docker::{Docker, DockerConfig};
use crate::cri::{Image, Runtime, RuntimeError};
use crate::rt::SystemClock;

/// The flags of `orch image`.
#[derive(Debug, Clone, Args)]
pub struct ImageSettings {
    /// Folder that holds all state of this machine
    #[arg(long, global = true, env = "ORCH_DATA_DIR", default_value = "/var/lib/orch", value_name = "DIR")]
    data_dir: PathBuf,
    /// Socket of the Docker engine [default: DOCKER_HOST, or unix:///var/run/docker.sock]
    #[arg(long, global = true, env = "ORCH_DOCKER_HOST", value_name = "URL")]
    docker_host: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// List the images
    Ls,
    /// Load images from tarballs (docker save, OCI; compressed or not)
    Load {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Remove images by name or id; one that a container uses stays
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove the images that this node pulled and no container uses
    Prune,
}

/// Runs the command.
///
/// # Errors
/// [`CmdError`] with the engine's words.
pub async fn run(settings: ImageSettings) -> Result<(), CmdError> {
    let host = docker_host(settings.docker_host.as_deref());
    let docker = Docker::connect(DockerConfig { host, owner: String::new() }).map_err(|error| failed(&error))?;
    let runtime: Arc<dyn Runtime> = Arc::new(docker);
    match settings.action {
        Action::Ls => {
            let images = runtime.images().await.map_err(|error| failed(&error))?;
            print!("{}", table(images));
        }
        Action::Load { files } => {
            for file in files {
                let loaded = preload::load(&*runtime, &file).await;
                let loaded = loaded.map_err(|why| CmdError::Setting(format!("cannot load {}: {why}", file.display())))?;
                println!("{}: {}", file.display(), loaded.join(", "));
            }
        }
        Action::Rm { images } => {
            for image in images {
                if runtime.image(&image).await.map_err(|error| failed(&error))?.is_none() {
                    return Err(CmdError::Setting(format!("no such image: {image}; `orch image ls` lists them")));
                }
                runtime.remove_image(&image).await.map_err(|error| failed(&error))?;
                println!("{image} removed");
            }
        }
        Action::Prune => {
            let ledger = Arc::new(Ledger::open(settings.data_dir.join("agent").join(Ledger::FILE)));
            let collector = Collector::new(runtime, ledger, Arc::default(), Arc::new(SystemClock), Thresholds::default());
            println!("freed {} MB", collector.free(u64::MAX, Timestamp::MAX).await / 1_000_000);
        }
    }
    Ok(())
}

fn failed(error: &RuntimeError) -> CmdError {
    CmdError::Setting(error.to_string())
}

/// Names, ids and sizes, sorted by name.
fn table(images: Vec<Image>) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
        let names = if image.tags.is_empty() { vec!["<none>".to_owned()] } else { image.tags };
        rows.extend(names.into_iter().map(|name| [name, id.clone(), size.clone()]));
    }
    rows.sort();
    rows.insert(0, ["IMAGE", "ID", "SIZE"].map(str::to_owned));
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    rows.iter().map(|[name, id, size]| format!("{name:width$}   {id:12}   {size}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_row() {
        let image = Image {
            id: "sha256:0123456789abcdef".to_owned(),
            tags: vec!["b:1".to_owned(), "a:1".to_owned()],
            size_bytes: 1_500_000,
            ..Image::default()
        };
        assert_eq!(
            table(vec![image]),
            "IMAGE   ID             SIZE\na:1     0123456789ab   1.5 MB\nb:1     0123456789ab   1.5 MB\n"
        );
    }
}
