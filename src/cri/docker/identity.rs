//! Whom a container's first process runs as. The kernel tells; the engine knows only what was asked for, which may be a name.

use crate::cri::ProcessUser;

/// The user and the groups of a process; `None` when it has ended.
pub(super) fn of_process(pid: u32) -> Option<ProcessUser> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(status: &str) -> Option<ProcessUser> {
    let numbers = |name: &str| {
        let values = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(values.split_whitespace().map_while(|number| number.parse::<u32>().ok()))
    };
    // Real, effective, saved and that of the file system: they are one unless the program is setuid.
    let (uid, gid) = (numbers("Uid")?.next()?, numbers("Gid")?.next()?);
    Some(ProcessUser { uid, gid, groups: numbers("Groups")?.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let status =
            "Name:\tsleep\nUid:\t1000\t1001\t1000\t1000\nGid:\t3000\t3000\t3000\t3000\nFDSize:\t64\nGroups:\t3000 4000 \n";
        let user = |uid, gid, groups: &[u32]| Some(ProcessUser { uid, gid, groups: groups.to_vec() });
        assert_eq!(parse(status), user(1_000, 3_000, &[3_000, 4_000]));
        assert_eq!(parse("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \n"), user(0, 0, &[]));
        assert_eq!(parse("Uid:\t0\t0\t0\t0\n"), None);
        assert!(of_process(std::process::id()).is_some() && of_process(u32::MAX).is_none());
    }
}
