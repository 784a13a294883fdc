//! The image of sandboxes: one static program of about 200 bytes that holds the namespaces of a pod. It is made here and
//! loaded into the engine, so that nothing has to be pulled before the first pod.
//!
//! The program is written in machine code because nothing else is at hand everywhere: an executable that is linked dynamically
//! does not run in an empty image. It blocks SIGINT, SIGTERM and SIGCHLD (a blocked signal reaches PID 1 too, which ignores
//! what it does not handle), then waits for one at a time: a child that ended is reaped, any other signal ends it with code 0.

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use super::Engine;
use crate::cri::RuntimeError;

/// The image's name; the tag counts up when the program or its image changes.
pub(super) const IMAGE: &str = "orch/pause:1";
/// Path of the program within the image.
const PROGRAM: &str = "pause";
/// Where the program lies in memory.
const BASE: u64 = 0x40_0000;
/// Sizes of the ELF header and of its one program header.
const HEADERS: usize = 64 + 56;

/// An instruction set, as ELF, Docker and the program need it.
struct Machine {
    /// As Rust and the kernel call it.
    name: &'static str,
    /// As image configurations call it.
    image: &'static str,
    /// `e_machine` of ELF.
    elf: u16,
    code: &'static [u8],
}

const MACHINES: [Machine; 2] = [
    Machine { name: "x86_64", image: "amd64", elf: 62, code: X86_64 },
    Machine { name: "aarch64", image: "arm64", elf: 183, code: AARCH64 },
];

#[rustfmt::skip]
const X86_64: &[u8] = &[
    0x68, 0x02, 0x40, 0x01, 0x00, // push 0x14002            the set: SIGINT, SIGTERM, SIGCHLD
    0x6a, 0x0e, 0x58,             // push 14; pop rax        rt_sigprocmask(
    0x31, 0xff,                   // xor edi, edi              SIG_BLOCK,
    0x48, 0x89, 0xe6,             // mov rsi, rsp              &set,
    0x31, 0xd2,                   // xor edx, edx              NULL,
    0x6a, 0x08, 0x41, 0x5a,       // push 8; pop r10           8)
    0x0f, 0x05,                   // syscall
    // wait:
    0xb8, 0x80, 0x00, 0x00, 0x00, // mov eax, 128            rt_sigtimedwait(
    0x48, 0x89, 0xe7,             // mov rdi, rsp              &set,
    0x31, 0xf6,                   // xor esi, esi              NULL,
    0x31, 0xd2,                   // xor edx, edx              NULL,
    0x6a, 0x08, 0x41, 0x5a,       // push 8; pop r10           8)
    0x0f, 0x05,                   // syscall
    0x83, 0xf8, 0x11,             // cmp eax, 17             SIGCHLD?
    0x74, 0x0b,                   // je reap
    0x85, 0xc0,                   // test eax, eax           interrupted?
    0x7e, 0xe5,                   // jle wait
    0x6a, 0x3c, 0x58,             // push 60; pop rax        exit(
    0x31, 0xff,                   // xor edi, edi              0)
    0x0f, 0x05,                   // syscall
    // reap:
    0x6a, 0x3d, 0x58,             // push 61; pop rax        wait4(
    0x48, 0x83, 0xcf, 0xff,       // or rdi, -1                -1,
    0x31, 0xf6,                   // xor esi, esi              NULL,
    0x6a, 0x01, 0x5a,             // push 1; pop rdx           WNOHANG,
    0x45, 0x31, 0xd2,             // xor r10d, r10d            NULL)
    0x0f, 0x05,                   // syscall
    0x85, 0xc0,                   // test eax, eax
    0x7f, 0xeb,                   // jg reap                 there may be more
    0xeb, 0xc7,                   // jmp wait
];

#[rustfmt::skip]
const AARCH64: &[u8] = &[
    0x40, 0x00, 0x88, 0x52, // mov w0, #0x4002              the set: SIGINT, SIGTERM,
    0x20, 0x00, 0xa0, 0x72, // movk w0, #1, lsl #16         SIGCHLD
    0xe0, 0x0f, 0x1f, 0xf8, // str x0, [sp, #-16]!
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0                   rt_sigprocmask(SIG_BLOCK,
    0xe1, 0x03, 0x00, 0x91, // mov x1, sp                     &set,
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0                     NULL,
    0x03, 0x01, 0x80, 0xd2, // mov x3, #8                     8)
    0xe8, 0x10, 0x80, 0xd2, // mov x8, #135
    0x01, 0x00, 0x00, 0xd4, // svc #0
    // wait:
    0xe0, 0x03, 0x00, 0x91, // mov x0, sp                   rt_sigtimedwait(&set,
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0                     NULL,
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0                     NULL,
    0x03, 0x01, 0x80, 0xd2, // mov x3, #8                     8)
    0x28, 0x11, 0x80, 0xd2, // mov x8, #137
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x1f, 0x44, 0x00, 0x71, // cmp w0, #17                  SIGCHLD?
    0xc0, 0x00, 0x00, 0x54, // b.eq reap
    0x1f, 0x00, 0x00, 0x71, // cmp w0, #0                   interrupted?
    0xed, 0xfe, 0xff, 0x54, // b.le wait
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0                   exit(0)
    0xa8, 0x0b, 0x80, 0xd2, // mov x8, #93
    0x01, 0x00, 0x00, 0xd4, // svc #0
    // reap:
    0x00, 0x00, 0x80, 0x92, // mov x0, #-1                  wait4(-1,
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0                     NULL,
    0x22, 0x00, 0x80, 0xd2, // mov x2, #1                     WNOHANG,
    0x03, 0x00, 0x80, 0xd2, // mov x3, #0                     NULL)
    0x88, 0x20, 0x80, 0xd2, // mov x8, #260
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x1f, 0x00, 0x00, 0x71, // cmp w0, #0
    0x2c, 0xff, 0xff, 0x54, // b.gt reap                    there may be more
    0xeb, 0xff, 0xff, 0x17, // b wait
];

impl Engine {
    /// Loads the pause image if the engine has none. Several callers at one time load it once.
    pub(super) async fn ensure_pause_image(&self) -> Result<(), RuntimeError> {
        let _one = self.pause.lock().await;
        if self.find_image(IMAGE).await?.is_some() {
            return Ok(());
        }
        let arch = std::env::consts::ARCH;
        let machine = MACHINES.iter().find(|machine| machine.name == arch);
        let machine = machine.ok_or_else(|| RuntimeError::Failed(format!("no pause program for {arch}")))?;
        let tarball = tarball(machine).map_err(|error| RuntimeError::Failed(format!("make the pause image: {error}")))?;
        self.load_stream(futures_util::stream::iter([Ok(tarball)])).await?;
        tracing::info!(image = IMAGE, "loaded the pause image");
        Ok(())
    }
}

/// The program as an ELF executable: header, one program header that maps the whole file, code.
fn elf(machine: &Machine) -> Vec<u8> {
    let size = (HEADERS + machine.code.len()) as u64;
    let mut file = Vec::with_capacity(HEADERS + machine.code.len());
    // e_ident: magic, 64 bits, little-endian, version 1, System V.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes()); // e_type: executable
    file.extend(machine.elf.to_le_bytes());
    file.extend(1_u32.to_le_bytes()); // e_version
    file.extend((BASE + HEADERS as u64).to_le_bytes()); // e_entry
    file.extend(64_u64.to_le_bytes()); // e_phoff
    file.extend(0_u64.to_le_bytes()); // e_shoff
    file.extend(0_u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // p_type: load
    file.extend(5_u32.to_le_bytes()); // p_flags: read and execute
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [0, BASE, BASE, size, size, 0x1_0000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(machine.code);
    file
}

/// The image as `docker save` writes it.
fn tarball(machine: &Machine) -> std::io::Result<Bytes> {
    let layer = archive(&[(PROGRAM, 0o555, &elf(machine))])?;
    let config = serde_json::json!({
        "architecture": machine.image,
        "os": "linux",
        "config": { "Entrypoint": [format!("/{PROGRAM}")] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
        "history": [{ "created_by": "orch" }],
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]).to_string();
    let files = [
        (config_name.as_str(), 0o444, config.as_bytes()),
        ("layer.tar", 0o444, &layer),
        ("manifest.json", 0o444, manifest.as_bytes()),
    ];
    archive(&files).map(Bytes::from)
}

fn archive(files: &[(&str, u32, &[u8])]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *content)?;
    }
    archive.into_inner()
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_machine_has_a_whole_program() {
        for machine in &MACHINES {
            let file = elf(machine);
            assert_eq!(file.len(), HEADERS + machine.code.len());
            assert!(tarball(machine).unwrap().len() > file.len());
        }
    }

    #[tokio::test]
    async fn the_program_runs_and_ends_on_term() {
        let Some(machine) = MACHINES.iter().find(|machine| machine.name == std::env::consts::ARCH) else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PROGRAM);
        std::fs::write(&path, elf(machine)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        // It has blocked the signals once it sleeps in rt_sigtimedwait.
        let wchan = format!("/proc/{pid}/syscall");
        for _ in 0..500 {
            if std::fs::read_to_string(&wchan).is_ok_and(|text| text.starts_with("128 ") || text.starts_with("137 ")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCHLD).unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
