//! Arrow files and streams (IPC, Feather version 2).
//!
//! Their lengths are believed by whoever allocates memory for them, so all are held against the
//! file before anything is read.

use std::io::{BufReader, Read, Seek, SeekFrom};

use arrow_ipc::reader::StreamReader;
use arrow_ipc::{MessageHeader, root_as_message};

use crate::error::TraceError;
use crate::format::parquet::{Batches, guarded};
use crate::input::{Section, Source};

/// Most bytes that one batch may unpack to.
const MAX_UNPACKED: i64 = 1 << 30;

/// Longest message without its body.
const MAX_MESSAGE: u32 = 64 << 20;

/// Start of every message.
const CONTINUATION: u32 = u32::MAX;

const READABLE: &str = "a readable Arrow file";

/// Word at both ends of a file.
const MAGIC: &[u8] = b"ARROW1";

/// Opens `source`, which is of either kind.
pub(super) fn open(source: &Source) -> Result<Batches, TraceError> {
    let file = source.random()?;
    let place = source.place();
    // A file is a stream between two magic words, with a footer that need not be believed.
    let start = guarded(&place, READABLE, || first_message(&file))?;
    guarded(&place, READABLE, || check(&file, start))?;
    let stream = BufReader::new(file.section(start, file.len()));
    let reader = guarded(&place, READABLE, || StreamReader::try_new(stream, None))?;
    let schema = reader.schema();
    let batches = reader.map(|batch| batch.map_err(|error| error.to_string()));
    Ok(Batches::new(schema, place, Box::new(batches)))
}

/// Where messages begin.
fn first_message(file: &Source) -> Result<u64, String> {
    let ends = |at: u64| {
        let mut word = Vec::new();
        let read = file.section(at, MAGIC.len() as u64).read_to_end(&mut word);
        read.map(|_| word == MAGIC)
            .map_err(|error| error.to_string())
    };
    if !ends(0)? {
        return Ok(0);
    }
    if !ends(file.len().saturating_sub(MAGIC.len() as u64))? {
        return Err("no ARROW1 at the end (is the file cut off?)".into());
    }
    // Zeros fill up to a multiple of 8 or 64.
    let mut start = 8;
    while start < 64 && word(&mut file.section(start, 4))? == Some(0) {
        start += 8;
    }
    Ok(start)
}

/// Walks all messages from `start` on.
fn check(file: &Source, start: u64) -> Result<(), String> {
    let mut section = file.section(0, file.len());
    let mut at = start;
    let broken = |what: &str, at: u64| format!("{what} at byte {at}");
    loop {
        seek(&mut section, at)?;
        let Some(word) = word(&mut section)? else {
            return Ok(());
        };
        if word != CONTINUATION {
            return Err(broken("no message", at));
        }
        let Some(length) = self::word(&mut section)? else {
            return Err(broken("half a message", at));
        };
        if length == 0 {
            return Ok(());
        }
        if length > MAX_MESSAGE || at + 8 + u64::from(length) > file.len() {
            return Err(broken("a message longer than the file", at));
        }
        let mut metadata = vec![0; length as usize];
        let read = section.read_exact(&mut metadata);
        read.map_err(|error| error.to_string())?;
        let message = root_as_message(&metadata).map_err(|error| error.to_string())?;
        let body = at + 8 + u64::from(length);
        let body_length = u64::try_from(message.bodyLength()).unwrap_or(u64::MAX);
        let end = body.checked_add(body_length);
        let Some(end) = end.filter(|&end| end <= file.len()) else {
            return Err(broken("a body longer than the file", body));
        };
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => message.header_as_record_batch(),
            MessageHeader::DictionaryBatch => {
                let dictionary = message.header_as_dictionary_batch();
                dictionary.and_then(|dictionary| dictionary.data())
            }
            _ => None,
        };
        if let Some(batch) = batch
            && batch.compression().is_some()
        {
            let mut unpacked = 0_i64;
            for buffer in batch.buffers().iter().flatten() {
                let offset = u64::try_from(buffer.offset()).unwrap_or(u64::MAX);
                if buffer.length() == 0 {
                    continue;
                }
                seek(&mut section, body.saturating_add(offset))?;
                let mut eight = [0; 8];
                let read = section.read_exact(&mut eight);
                read.map_err(|error| error.to_string())?;
                unpacked = unpacked.saturating_add(i64::from_le_bytes(eight).max(0));
            }
            if unpacked > MAX_UNPACKED {
                return Err(format!(
                    "a batch of {unpacked} bytes, more than {MAX_UNPACKED}"
                ));
            }
        }
        at = end;
    }
}

fn seek(section: &mut Section, at: u64) -> Result<(), String> {
    let moved = section.seek(SeekFrom::Start(at));
    moved.map(|_| ()).map_err(|error| error.to_string())
}

/// The next four bytes; nothing at the end of the file.
fn word(section: &mut Section) -> Result<Option<u32>, String> {
    let mut four = Vec::new();
    let read = section.take(4).read_to_end(&mut four);
    read.map_err(|error| error.to_string())?;
    match four[..] {
        [a, b, c, d] => Ok(Some(u32::from_le_bytes([a, b, c, d]))),
        _ => Ok(None),
    }
}
