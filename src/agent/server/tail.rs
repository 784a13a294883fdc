//! Where the last N lines of a container's log begin, over its rotated files, read from behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::logs::Entry;

/// Bytes read at once.
const BLOCK_BYTES: u64 = 64 << 10;

/// Opens the files of a log, oldest first: Docker appends `.1` to the file before the present one, and so on. They are opened
/// from the newest on: when the log is rotated meanwhile, a file is met again under its next name, and none is missed. A rotation
/// renames the oldest first, so a name that is missing may be one whose file has just got the next name.
///
/// # Errors
/// When a file that is there cannot be opened.
pub(super) fn open(log: &Path) -> io::Result<Vec<File>> {
    loop {
        let before = inode(log);
        let (mut files, mut known, mut is_gap) = (Vec::new(), BTreeSet::new(), false);
        for number in 0.. {
            match File::open(if number == 0 { log.to_owned() } else { rotated(log, number) }) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_gap => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => is_gap = true,
                file => {
                    let file = file?;
                    is_gap = false;
                    if known.insert(file.metadata()?.ino()) {
                        files.push(file);
                    }
                }
            }
        }
        // Two missing names may also be one before a rotation ended and one after the next began.
        if inode(log) == before {
            files.reverse();
            return Ok(files);
        }
    }
}

/// By which a file is known whatever its name is; `None` if it is not there.
pub(super) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

pub(super) fn rotated(log: &Path, number: u32) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The file (its index) and offset from which the last `lines` lines follow.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn start(files: &mut [File], lines: u64) -> io::Result<(usize, u64)> {
    let mut left = lines;
    let mut is_newest = true;
    for (index, file) in files.iter_mut().enumerate().rev() {
        let mut end = file.seek(SeekFrom::End(0))?;
        if is_newest && lines == 0 {
            return Ok((index, end));
        }
        let mut carried = Vec::new();
        while end > 0 {
            let begin = end.saturating_sub(BLOCK_BYTES);
            let mut block = vec![0; usize::try_from(end - begin).unwrap_or(0)];
            file.seek(SeekFrom::Start(begin))?;
            file.read_exact(&mut block)?;
            block.append(&mut carried);
            // Entries end with a newline: what stands before the first one may begin in an earlier block.
            let mut stop = block.len();
            while stop > 0 {
                let start = block[..stop - 1].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
                let Some(start) = start.or((begin == 0).then_some(0)) else { break };
                let ends_line = Entry::parse(&block[start..stop]).is_none_or(|entry| entry.log.ends_with('\n'));
                // An entry that ends a line belongs to the line before those that were counted.
                if ends_line || is_newest {
                    if left == 0 {
                        return Ok((index, begin + stop as u64));
                    }
                    left -= 1;
                }
                is_newest = false;
                stop = start;
            }
            block.truncate(stop);
            carried = block;
            end = begin;
        }
    }
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        format!("{}\n", serde_json::json!({ "log": text, "stream": "stdout", "time": "2026-01-01T00:00:00Z" }))
    }

    fn rest(log: &Path, lines: u64) -> String {
        let mut files = open(log).unwrap();
        let (index, offset) = start(&mut files, lines).unwrap();
        let mut text = String::new();
        for (n, file) in files.iter_mut().enumerate().skip(index) {
            file.seek(SeekFrom::Start(if n == index { offset } else { 0 })).unwrap();
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            for entry in content.lines() {
                text += &Entry::parse(entry.as_bytes()).unwrap().log;
            }
        }
        text
    }

    #[test]
    fn a_rotation_between_is_no_second_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x-json.log");
        std::fs::write(&log, line("one\n")).unwrap();
        std::fs::hard_link(&log, rotated(&log, 1)).unwrap();
        assert_eq!(rest(&log, 99), "one\n");
        std::fs::remove_file(&log).unwrap();
        assert_eq!(rest(&log, 99), "one\n");
        // The oldest file has its next name, the present one not yet.
        std::fs::rename(rotated(&log, 1), rotated(&log, 2)).unwrap();
        std::fs::write(&log, line("two\n")).unwrap();
        assert_eq!(rest(&log, 99), "one\ntwo\n");
    }

    #[test]
    fn counts_lines_over_files_and_partial_entries() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x-json.log");
        std::fs::write(rotated(&log, 2), line("one\n")).unwrap();
        std::fs::write(rotated(&log, 1), line("two\n") + &line("thr")).unwrap();
        std::fs::write(&log, line("ee\n") + &line("four\n") + &line("fi")).unwrap();
        assert_eq!(open(&log).unwrap().len(), 3);
        let cases = [
            (0, ""),
            (1, "fi"),
            (2, "four\nfi"),
            (3, "three\nfour\nfi"),
            (4, "two\nthree\nfour\nfi"),
            (5, "one\ntwo\nthree\nfour\nfi"),
            (99, "one\ntwo\nthree\nfour\nfi"),
        ];
        for (lines, expected) in cases {
            assert_eq!(rest(&log, lines), expected, "{lines}");
        }
    }

    #[test]
    fn finds_lines_across_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x-json.log");
        let lines: Vec<String> = (0..5_000).map(|n| format!("line {n} {}\n", "x".repeat(n % 97))).collect();
        std::fs::write(&log, lines.iter().map(|text| line(text)).collect::<String>()).unwrap();
        for count in [1_usize, 10, 700, 701, 3_000, 4_999, 5_000] {
            assert_eq!(rest(&log, count as u64), lines[5_000 - count..].concat(), "{count}");
        }
    }
}
