//! What this machine is: capacity and identity, read from the kernel's files. The parsers are pure.

use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::api::quantity::{Format, Quantity};
use crate::cri::RuntimeInfo;

/// What the machine has to give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    /// Bytes in huge pages, by the name of the resource (`hugepages-2Mi`); those sizes too of which there are none.
    pub huge_pages: Vec<(String, i64)>,
    /// NVIDIA's devices that the kernel knows.
    pub gpus: i64,
}

/// The machine's capacity; `data_dir` says whose disk counts.
pub fn capacity(data_dir: &Path) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)).unwrap_or(0);
    let disk = nix::sys::statvfs::statvfs(data_dir).map(|stat| {
        // The width of these differs between platforms.
        let (blocks, size) = (i128::from(stat.blocks()), i128::from(stat.fragment_size()));
        i64::try_from(blocks * size).unwrap_or(i64::MAX)
    });
    Capacity {
        cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1_000,
        memory_bytes: memory,
        ephemeral_storage_bytes: disk.unwrap_or(0),
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        gpus: std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |gpus| i64::try_from(gpus.flatten().count()).unwrap_or(0)),
    }
}

/// Huge pages by size, from the kernel's `hugepages-2048kB/nr_hugepages`.
fn huge_pages(folder: &Path) -> Vec<(String, i64)> {
    let Ok(sizes) = std::fs::read_dir(folder) else { return Vec::new() };
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let kib: i64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let page = Quantity::new(kib << 10, Format::BinarySi);
        Some((format!("hugepages-{page}"), count.saturating_mul(kib << 10)))
    };
    let mut all: Vec<_> = sizes.flatten().filter_map(size).collect();
    all.sort();
    all
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn total_memory(text: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<i64>().ok().map(|kib| kib << 10)
}

/// `PRETTY_NAME` of `/etc/os-release`.
fn pretty_name(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

/// The machine's architecture in Go's words, as labels and images have it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `status.nodeInfo`; without a runtime its version is `docker://Unknown`.
pub fn system_info(runtime: Option<&RuntimeInfo>) -> NodeSystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_else(|_| String::new());
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let os_image = std::fs::read_to_string("/etc/os-release").ok().and_then(|text| pretty_name(&text));
    let machine_id = Some(read("/etc/machine-id")).filter(|id| !id.is_empty());
    let system_uuid = Some(read("/sys/class/dmi/id/product_uuid")).filter(|id| !id.is_empty());
    let machine_id = machine_id.or_else(|| system_uuid.clone()).unwrap_or_else(String::new);
    let version = format!("v{}+orch.{}", UPSTREAM_VERSION, env!("CARGO_PKG_VERSION"));
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime
            .map_or_else(|| "docker://Unknown".to_owned(), |info| format!("{}://{}", info.name, info.version)),
        kernel_version: kernel.unwrap_or_else(|_| "unknown".to_owned()),
        kube_proxy_version: String::new(),
        kubelet_version: version,
        system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: os_image.unwrap_or_else(|| "Linux".to_owned()),
        swap: None,
    }
}

/// The version of Kubernetes whose kubelet this is like.
const UPSTREAM_VERSION: &str = "1.36.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_by_size() {
        let folder = tempfile::tempdir().unwrap();
        for (name, count) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(huge_pages(folder.path()), [("hugepages-1Gi".to_owned(), 0), ("hugepages-2Mi".to_owned(), 6 << 20)]);
    }

    #[test]
    fn files_of_the_kernel() {
        assert_eq!(total_memory("MemTotal:       24567890 kB\nMemFree: 1 kB\n"), Some(24_567_890 << 10));
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n").as_deref(), Some("Debian GNU/Linux 12"));
        let here = capacity(Path::new("/"));
        assert!(here.cpu_milli > 0 && here.memory_bytes > 0 && here.ephemeral_storage_bytes > 0);
    }
}
