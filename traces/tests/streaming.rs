//! A trace larger than the memory it takes to read it. Alone in its binary, as the memory is that
//! of the process.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::io::{self, Read, Seek, SeekFrom};

use moeplan_traces::{ImportOptions, RoutingStep, TraceMeta, TraceWriter, open};

/// A file of counts that is made while it is read: far larger than the memory it takes.
struct Endless {
    head: Vec<u8>,
    row: Vec<u8>,
    steps: u64,
    at: u64,
    /// Largest distance between what was read and where reading went on: 0 for a stream.
    largest_read: usize,
}

impl Endless {
    fn len(&self) -> u64 {
        self.head.len() as u64 + self.steps * self.row.len() as u64
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.largest_read = self.largest_read.max(buffer.len());
        assert!(
            self.largest_read <= 4 << 20,
            "a read of {} bytes",
            self.largest_read
        );
        let mut done = 0;
        while done < buffer.len() && self.at < self.len() {
            let head = self.head.len() as u64;
            let (from, offset) = match self.at.checked_sub(head) {
                None => (self.head.as_slice(), self.at as usize),
                Some(at) => (self.row.as_slice(), (at % self.row.len() as u64) as usize),
            };
            let size = (buffer.len() - done).min(from.len() - offset);
            buffer[done..done + size].copy_from_slice(&from[offset..offset + size]);
            // Steps are numbered with as many digits as there is room for.
            if let Some(at) = self.at.checked_sub(head) {
                let number = format!("{:010}", at / self.row.len() as u64);
                for (index, digit) in number.bytes().enumerate() {
                    if (offset..offset + size).contains(&index) {
                        buffer[done + index - offset] = digit;
                    }
                }
            }
            done += size;
            self.at += size as u64;
        }
        Ok(done)
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(offset) => self.len().checked_add_signed(offset).unwrap(),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset).unwrap(),
        };
        Ok(self.at)
    }
}

#[test]
fn a_trace_larger_than_memory_streams() {
    let step = RoutingStep::new(0, 0, 1, 1000, vec![1; 1000]).unwrap();
    let meta = TraceMeta::of_step(&step);
    let mut writer = TraceWriter::new(Vec::new(), "endless.csv", meta).unwrap();
    writer.write(&step).unwrap();
    let text = writer.finish().unwrap();
    let line = text.iter().rposition(|&byte| byte == b',').unwrap();
    let start = text[..line]
        .iter()
        .rposition(|&byte| byte == b'\n')
        .unwrap()
        + 1;
    let row = [b"0000000000", &text[start + 1..]].concat();
    // 400 MB; the reader holds a line, a step and its buffers.
    let file = Endless {
        head: text[..start].to_vec(),
        row,
        steps: 200_000,
        at: 0,
        largest_read: 0,
    };
    let source = open(file, "endless.csv", &ImportOptions::default()).unwrap();
    let before = resident_kib();
    let copies: u64 = source.map(|step| step.unwrap().total()).sum();
    assert_eq!(copies, 200_000 * 1000);
    if let (Some(before), Some(after)) = (before, resident_kib()) {
        assert!(
            after < before + (64 << 10),
            "{before} KiB before, {after} after"
        );
    }
}

/// Memory of this process, where the system tells.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
