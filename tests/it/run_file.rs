//! Run files: what is written comes back; what is cut off or damaged does no harm.

use moeplan::dash::recording::Recording;
use moeplan::error::Exit;
use moeplan::run_file::{Block, MAGIC, Reader, Writer};
use moeplan_tests::moeplan;
use std::io::Cursor;
use std::path::Path;

/// A simulated run, recorded once: `tests/it/dash.rs` says how.
const SMALL: &[u8] = include_bytes!("../fixtures/small.moeplan");

/// Its blocks.
pub(crate) fn small() -> Vec<Block> {
    blocks(SMALL).expect("the fixture is whole")
}

fn blocks(bytes: &[u8]) -> Result<Vec<Block>, String> {
    let mut reader = Reader::new(Cursor::new(bytes), "x".into());
    reader.blocks().map_err(|error| error.to_string())
}

/// Where each block ends.
fn ends() -> Vec<usize> {
    let mut at = MAGIC.len();
    let mut ends = Vec::new();
    while at < SMALL.len() {
        let length = u32::from_le_bytes(SMALL[at..at + 4].try_into().unwrap());
        at += 9 + length as usize;
        ends.push(at);
    }
    ends
}

#[test]
fn blocks_come_back_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.moeplan");
    let mut writer = Writer::create(&path).unwrap();
    for block in small() {
        writer.append(&block).unwrap();
    }
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.blocks().unwrap(), small());
    assert_eq!(reader.next_block().unwrap(), None);
}

#[test]
fn a_file_cut_at_any_byte_reads_up_to_the_last_whole_block() {
    let ends = ends();
    assert_eq!(ends.last(), Some(&SMALL.len()));
    let all = small();
    let near = ends.iter().flat_map(|end| [end - 1, *end, end + 1]);
    for cut in (0..SMALL.len()).step_by(211).chain(0..40).chain(near) {
        let cut = cut.min(SMALL.len());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let read = blocks(&SMALL[..cut]).unwrap_or_else(|error| panic!("{cut}: {error}"));
        assert_eq!(read, all[..whole], "cut at {cut}");
    }
}

#[test]
fn a_file_is_followed_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.moeplan");
    let mut writer = Writer::create(&path).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    for block in small() {
        assert_eq!(reader.next_block().unwrap(), None);
        writer.append(&block).unwrap();
        assert_eq!(reader.next_block().unwrap(), Some(block));
    }
    assert!(!reader.is_replaced());
    Writer::create(&path).unwrap();
    assert!(reader.is_replaced());
}

#[test]
fn damage_is_one_clear_error() {
    for at in (0..SMALL.len()).step_by(97) {
        let mut damaged = SMALL.to_vec();
        damaged[at] ^= 0x40;
        match blocks(&damaged) {
            Err(error) => {
                assert!(
                    error.starts_with("x: byte ") && error.contains("expected"),
                    "{error}"
                );
                assert_eq!(error.lines().count(), 1);
            }
            // A length that grew: the rest is a block that is not whole yet.
            Ok(read) => assert!(read.len() < small().len(), "byte {at}"),
        }
    }
    for (bytes, says) in [
        (
            &b"PK\x03\x04 something else"[..],
            "x: byte 0: expected a run file",
        ),
        (
            &b"MOEPLAN\x02"[..],
            "x: byte 0: expected a run file of this version",
        ),
        (
            &b"MOEPLAN\x01\xff\xff\xff\xff\0\0\0\0\x01"[..],
            "x: byte 8: expected a block of at most 64 MiB",
        ),
    ] {
        assert!(blocks(bytes).unwrap_err().starts_with(says));
    }
    assert_eq!(blocks(b""), Ok(Vec::new()));
}

#[test]
fn blocks_of_another_run_are_refused() {
    let mut run = Recording::default();
    let all = small();
    // Steps before any header.
    let steps = all
        .iter()
        .find(|block| matches!(block, Block::Steps(_)))
        .unwrap();
    assert!(run.push(steps.clone()).is_err());
    for block in all.clone() {
        run.push(block).unwrap();
    }
    assert!(run.push(all[0].clone()).is_err());
}

#[test]
fn a_recording_holds_what_the_command_printed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.moeplan");
    let args = format!(
        "compare --gpus 16 --tokens-per-step 512 --model-dim 256 --hidden-dim 256 --trace digits \
         --steps 5 --per-step --format json --record {}",
        path.display()
    );
    let ran = moeplan(&args);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let mut run = Recording::default();
    for block in Reader::open(&path).unwrap().blocks().unwrap() {
        run.push(block).unwrap();
    }
    assert_eq!(run.end.map(|end| end.interrupted), Some(false));
    assert_eq!(
        run.layers.as_ref().map(|layers| layers.layers.len()),
        Some(3)
    );
    for strategy in 0..2 {
        let rows = printed["runs"][strategy]["per_step"].as_array().unwrap();
        assert_eq!(rows.len(), run.steps.len());
        for (row, step) in rows.iter().zip(&run.steps) {
            let recorded = &step.runs[strategy];
            assert_eq!(row["step_time_ns"], recorded.time);
            assert_eq!(row["plan"], *recorded.plan);
            assert_eq!(row["step"], step.label);
            assert_eq!(row["memory_bytes_per_gpu"], recorded.memory_bytes);
        }
    }
    // The settings of the header are those of the answer, but for strategies with all their parts.
    let header = run.header.unwrap();
    assert_eq!(header.settings["layer"], printed["settings"]["layer"]);
    assert_eq!(header.settings["hardware"], printed["settings"]["hardware"]);
    // The same run, the same bytes.
    let again = folder.path().join("again.moeplan");
    moeplan(&args.replace("run.moeplan", "again.moeplan"));
    let read = |path: &Path| Reader::open(path).unwrap().blocks().unwrap();
    let details = |path: &Path| -> Vec<Block> {
        let blocks = read(path).into_iter();
        blocks
            .filter(|block| matches!(block, Block::Detail(_)))
            .collect()
    };
    assert_eq!(details(&path), details(&again));
}

#[test]
fn other_files_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thesis.tex");
    std::fs::write(&path, "years of work").unwrap();
    let small = "simulate --gpus 8 --tokens-per-step 256 --model-dim 64 --hidden-dim 64 --record";
    let ran = moeplan(&format!("{small} {}", path.display()));
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(
        ran.stderr
            .contains("expected a new file or a run file to replace")
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "years of work");
    let nowhere = folder.path().join("no/such/folder/run.moeplan");
    let ran = moeplan(&format!("{small} {}", nowhere.display()));
    assert_eq!(ran.exit, Exit::BadInput, "{}", ran.stderr);
    // An old run file is replaced.
    let old = folder.path().join("run.moeplan");
    for _ in 0..2 {
        let ran = moeplan(&format!("{small} {}", old.display()));
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    }
}
