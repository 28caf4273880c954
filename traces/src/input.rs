//! Files as they come: plain or compressed, read from the start or at any place.

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Place, TraceError, too_much};

/// What a trace is read from: a file, or a cursor over bytes.
pub trait Input: Read + Seek + Send + 'static {}

impl<T: Read + Seek + Send + 'static> Input for T {}

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Most that a compressed file of a layout that needs random access may hold.
const MAX_UNPACKED: u64 = 1 << 30;

/// Unpacked bytes that are always allowed, and how many times the packed ones beyond that. The
/// most that a real trace was seen to shrink is a hundredfold.
const FREE_UNPACKED: u64 = 64 << 20;
const MAX_RATIO: u64 = 1000;

/// Largest window of a zstd frame, as a power of two (128 MiB), as its own command line has it.
const MAX_WINDOW: u32 = 27;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// A file that several readers may be in at once.
#[derive(Clone)]
pub(crate) struct Source {
    shared: Arc<Mutex<Box<dyn Input>>>,
    name: Arc<str>,
    len: u64,
    packing: Packing,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = (&self.name, self.len, self.packing);
        f.debug_tuple("Source").field(&fields).finish()
    }
}

impl Source {
    /// Recognises a compressed file by its first bytes.
    pub(crate) fn new(mut input: impl Input, name: &str) -> Result<Self, TraceError> {
        let failed = |source| TraceError::reading(Place::of(name), source);
        let len = input.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut source = Self {
            shared: Arc::new(Mutex::new(Box::new(input))),
            name: name.into(),
            len,
            packing: Packing::None,
        };
        let head = source.head(4)?;
        source.packing = match head.as_slice() {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            _ => Packing::None,
        };
        Ok(source)
    }

    /// Name of the file, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The whole file, for messages.
    pub(crate) fn place(&self) -> Place {
        Place::of(&*self.name)
    }

    /// An error of reading the file.
    pub(crate) fn failed(&self, source: io::Error) -> TraceError {
        TraceError::reading(self.place(), source)
    }

    /// The first bytes, unpacked; fewer when the file is shorter.
    pub(crate) fn head(&self, bytes: usize) -> Result<Vec<u8>, TraceError> {
        let mut head = Vec::new();
        let limited = self.stream()?.take(bytes as u64).read_to_end(&mut head);
        limited.map_err(|source| self.failed(source))?;
        Ok(head)
    }

    /// The bytes from the start, unpacked.
    pub(crate) fn stream(&self) -> Result<Box<dyn BufRead + Send>, TraceError> {
        let plain = BufReader::with_capacity(CHUNK, self.section(0, self.len));
        let packed = Arc::new(AtomicU64::new(0));
        let counted = Counting {
            inner: plain,
            count: Arc::clone(&packed),
        };
        let unpacked: Box<dyn Read + Send> = match self.packing {
            Packing::None => return Ok(Box::new(counted.inner)),
            Packing::Gzip => Box::new(MultiGzDecoder::new(counted)),
            Packing::Zstd => {
                let decoder = zstd::Decoder::with_buffer(counted);
                let mut decoder = decoder.map_err(|source| self.failed(source))?;
                let set = decoder.window_log_max(MAX_WINDOW);
                set.map_err(|source| self.failed(source))?;
                Box::new(decoder)
            }
        };
        let bounded = Bounded {
            inner: unpacked,
            packed,
            unpacked: 0,
        };
        Ok(Box::new(BufReader::with_capacity(CHUNK, bounded)))
    }

    /// The file at any place: as it is, or unpacked into memory.
    pub(crate) fn random(&self) -> Result<Self, TraceError> {
        if self.packing == Packing::None {
            return Ok(self.clone());
        }
        let mut bytes = Vec::new();
        let limited = self.stream()?.take(MAX_UNPACKED + 1);
        let read = { limited }.read_to_end(&mut bytes);
        read.map_err(|source| self.failed(source))?;
        if bytes.len() as u64 > MAX_UNPACKED {
            return Err(TraceError::invalid(
                self.place(),
                format!("at most {MAX_UNPACKED} bytes once unpacked (unpack larger files first)"),
                "more",
            ));
        }
        Ok(Self {
            len: bytes.len() as u64,
            shared: Arc::new(Mutex::new(Box::new(Cursor::new(bytes)))),
            name: Arc::clone(&self.name),
            packing: Packing::None,
        })
    }

    /// Length of the file as it lies there.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes from `start` on, as they lie there.
    pub(crate) fn section(&self, start: u64, len: u64) -> Section {
        let start = start.min(self.len);
        Section {
            shared: Arc::clone(&self.shared),
            start,
            len: len.min(self.len - start),
            at: 0,
        }
    }
}

/// A part of a file with a position of its own.
pub(crate) struct Section {
    shared: Arc<Mutex<Box<dyn Input>>>,
    start: u64,
    len: u64,
    at: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at);
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        // A reader that panicked left nothing half done here: every read seeks first.
        let mut input = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        input.seek(SeekFrom::Start(self.start + self.at))?;
        let read = input.read(&mut buffer[..wanted])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(offset) => (self.len, offset),
            SeekFrom::Current(offset) => (self.at, offset),
        };
        let at = base.checked_add_signed(offset);
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// Counts what is taken of a packed file.
struct Counting<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: BufRead> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counting<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count.fetch_add(amount as u64, Ordering::Relaxed);
        self.inner.consume(amount);
    }
}

/// Fails where far more comes out of a packed file than went in.
struct Bounded<R> {
    inner: R,
    packed: Arc<AtomicU64>,
    unpacked: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.unpacked += read as u64;
        let packed = self.packed.load(Ordering::Relaxed);
        if self.unpacked > FREE_UNPACKED && self.unpacked / MAX_RATIO > packed {
            return Err(too_much(
                format!("at most {MAX_RATIO} times the size of the packed file"),
                format!("{} bytes out of {packed}, and more to come", self.unpacked),
            ));
        }
        Ok(read)
    }
}
