//! Blocks in a file: appended whole, checked when read.

use super::codec::{decode, encode};
use super::model::Block;
use crate::error::{Error, Place};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How a run file begins; the last byte is the version of the format.
pub const MAGIC: [u8; 8] = *b"MOEPLAN\x01";
/// Length, checksum and kind.
const FRAME: usize = 9;
/// Most bytes of a block, packed and unpacked; a damaged file must not fill memory.
const MOST_PACKED: usize = 64 << 20;
const MOST_BYTES: usize = 256 << 20;
/// zstd's default: higher levels gain a few percent for several times the time.
const LEVEL: i32 = 3;

/// Appends blocks to a new file.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// A new run file at `path`. An old run file is replaced; any other file is left alone.
    ///
    /// # Errors
    /// A file that cannot be made, or one in its place that is no run file.
    pub fn create(path: &Path) -> Result<Writer, Error> {
        let failed = |source| Error::Write {
            path: path.display().to_string(),
            source,
        };
        if path.exists() && !path.is_dir() {
            let mut start = Vec::new();
            let file = File::open(path).map_err(failed)?;
            file.take(MAGIC.len() as u64)
                .read_to_end(&mut start)
                .map_err(failed)?;
            if !start.is_empty() && !MAGIC.starts_with(&start) {
                let message = "expected a new file or a run file to replace, found another file";
                let place = Place::file(path.display().to_string());
                return Err(Error::input(place, message));
            }
        }
        let mut file = File::create(path).map_err(failed)?;
        file.write_all(&MAGIC).map_err(failed)?;
        Ok(Writer {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends `block` in one write.
    ///
    /// # Errors
    /// A disk that is full or gone.
    pub fn append(&mut self, block: &Block) -> Result<(), Error> {
        let framed = frame(block)?;
        let written = self.file.write_all(&framed);
        let written = match block {
            Block::End(_) => written.and_then(|()| self.file.sync_data()),
            Block::Header(_) | Block::Steps(_) | Block::Detail(_) | Block::Layers(_) => written,
        };
        written.map_err(|source| Error::Write {
            path: self.path.display().to_string(),
            source,
        })
    }
}

/// `block` as it stands in a file.
pub(super) fn frame(block: &Block) -> Result<Vec<u8>, Error> {
    let unexpected = |what: &dyn std::fmt::Display| Error::Unexpected(format!("run file: {what}"));
    let (kind, bytes) = encode(block).map_err(|error| unexpected(&error))?;
    let packed = zstd::encode_all(&bytes[..], LEVEL).map_err(|error| unexpected(&error))?;
    if packed.len() > MOST_PACKED || bytes.len() > MOST_BYTES {
        return Err(unexpected(&"a block is too large"));
    }
    let mut framed = Vec::with_capacity(FRAME + packed.len());
    framed.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    framed.extend_from_slice(&checksum(kind, &packed).to_le_bytes());
    framed.push(kind);
    framed.extend_from_slice(&packed);
    Ok(framed)
}

fn checksum(kind: u8, packed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(packed);
    hasher.finalize()
}

/// Reads blocks from a file that may still grow.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    name: String,
    /// Where the next block begins.
    offset: u64,
}

impl Reader<File> {
    /// The run file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path) -> Result<Reader<File>, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
        Ok(Reader::new(file, name))
    }

    /// Whether the file is shorter than what was read: another run took its place.
    pub fn is_replaced(&self) -> bool {
        let length = self.source.metadata().map_or(0, |file| file.len());
        length < self.offset
    }
}

impl<R: Read + Seek> Reader<R> {
    /// A reader of `source`, called `name` in errors.
    pub fn new(source: R, name: String) -> Reader<R> {
        Reader {
            source,
            name,
            offset: 0,
        }
    }

    /// The next block; `None` where no whole one is there (yet).
    ///
    /// # Errors
    /// What is no run file, or one that is damaged.
    pub fn next_block(&mut self) -> Result<Option<Block>, Error> {
        if self.offset == 0 {
            let mut magic = [0; MAGIC.len()];
            let read = self.fill(0, &mut magic)?;
            if magic[..read] != MAGIC[..read] {
                return Err(self.damaged("a run file of this version (made by --record)"));
            }
            if read < MAGIC.len() {
                return Ok(None);
            }
            self.offset = MAGIC.len() as u64;
        }
        loop {
            let mut head = [0; FRAME];
            if self.fill(self.offset, &mut head)? < FRAME {
                return Ok(None);
            }
            let [a, b, c, d, e, f, g, h, kind] = head;
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            if length > MOST_PACKED {
                return Err(self.damaged("a block of at most 64 MiB"));
            }
            let mut packed = vec![0; length];
            if self.fill(self.offset + FRAME as u64, &mut packed)? < length {
                return Ok(None);
            }
            if checksum(kind, &packed) != u32::from_le_bytes([e, f, g, h]) {
                return Err(self.damaged("a block that agrees with its checksum"));
            }
            let bytes = unpack(&packed).ok_or_else(|| self.damaged("zstd of at most 256 MiB"))?;
            let block = decode(kind, &bytes).map_err(|expected| self.damaged(expected))?;
            self.offset += (FRAME + length) as u64;
            // Kinds of later versions are passed over.
            if let Some(block) = block {
                return Ok(Some(block));
            }
        }
    }

    /// All blocks that are there.
    ///
    /// # Errors
    /// As [`Reader::next_block`].
    pub fn blocks(&mut self) -> Result<Vec<Block>, Error> {
        std::iter::from_fn(|| self.next_block().transpose()).collect()
    }

    /// Reads as much of `bytes` from `offset` as is there.
    fn fill(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize, Error> {
        let mut read = 0;
        let mut go = || {
            self.source.seek(SeekFrom::Start(offset))?;
            while read < bytes.len() {
                match self.source.read(&mut bytes[read..]) {
                    Ok(0) => break,
                    Ok(more) => read += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(read)
        };
        go().map_err(|source| Error::Read {
            path: self.name.clone(),
            source,
        })
    }

    fn damaged(&self, expected: &str) -> Error {
        let message = format!(
            "byte {}: expected {expected}, found other bytes",
            self.offset
        );
        Error::input(Place::file(self.name.clone()), message)
    }
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let decoder = zstd::Decoder::new(packed).ok()?;
    let mut bytes = Vec::new();
    decoder
        .take(MOST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (bytes.len() <= MOST_BYTES).then_some(bytes)
}
