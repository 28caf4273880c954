//! Zip archives: `.npz` of NumPy, `.pt` of PyTorch.

use std::io::{BufReader, Read};

use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::tensor::read as read_tensor;
use super::{ImportOptions, Imported, names, npy, torch};
use crate::error::{TraceError, quote};
use crate::format::parquet::guarded;
use crate::input::Source;

/// Most files of an archive; each tensor is one.
const MAX_ENTRIES: usize = 1 << 20;

/// One file of an archive.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    start: u64,
    packed: u64,
    /// Unpacked bytes.
    pub(super) size: u64,
    method: CompressionMethod,
}

/// A zip archive.
pub(super) struct Archive {
    source: Source,
    pub(super) entries: Vec<Entry>,
}

impl Archive {
    fn open(source: &Source) -> Result<Self, TraceError> {
        let source = source.random()?;
        let place = source.place();
        let entries = guarded(&place, "a readable zip archive", || {
            let mut archive = ZipArchive::new(BufReader::new(source.section(0, source.len())))?;
            if archive.len() > MAX_ENTRIES {
                return Err(zip::result::ZipError::InvalidArchive(
                    "too many files in the archive".into(),
                ));
            }
            let mut entries = Vec::new();
            for index in 0..archive.len() {
                let entry = archive.by_index_raw(index)?;
                entries.push(Entry {
                    name: entry.name()?.into_owned(),
                    start: entry.data_start().unwrap_or(u64::MAX),
                    packed: entry.compressed_size(),
                    size: entry.size(),
                    method: entry.compression(),
                });
            }
            Ok(entries)
        })?;
        Ok(Self { source, entries })
    }

    /// The entry whose name ends like that, after the name of a folder.
    pub(super) fn find(&self, end: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            let rest = entry.name.strip_suffix(end);
            rest.is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
        })
    }

    /// The unpacked bytes of `entry` from `skip` on.
    pub(super) fn read(
        &self,
        entry: &Entry,
        skip: u64,
    ) -> Result<Box<dyn Read + Send>, TraceError> {
        let place = || self.source.place().field(entry.name.as_str());
        let left = entry.size.saturating_sub(skip);
        match entry.method {
            CompressionMethod::Stored => {
                let start = entry.start.saturating_add(skip);
                let section = self.source.section(start, left);
                Ok(Box::new(BufReader::with_capacity(256 << 10, section)))
            }
            CompressionMethod::Deflated => {
                let packed = self.source.section(entry.start, entry.packed);
                let mut data = DeflateDecoder::new(packed);
                let mut skipped = (&mut data).take(skip);
                let copied = std::io::copy(&mut skipped, &mut std::io::sink());
                copied.map_err(|source| TraceError::reading(place(), source))?;
                Ok(Box::new(BufReader::new(data.take(left))))
            }
            other => Err(TraceError::invalid(
                place(),
                "stored or deflated entries",
                other.to_string(),
            )),
        }
    }
}

/// Reads an archive of arrays, or what `torch.save` wrote.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let archive = Archive::open(source)?;
    if archive.find("data.pkl").is_some() {
        return torch::read(source, archive, options);
    }
    let arrays = archive.entries.iter().filter_map(|entry| {
        let name = entry.name.strip_suffix(".npy")?;
        Some((name.to_owned(), entry.clone()))
    });
    let arrays: Vec<(String, Entry)> = arrays.collect();
    let named: Vec<&str> = arrays.iter().map(|(name, _)| name.as_str()).collect();
    let index = choose(source, &named, options)?;
    let (name, entry) = &arrays[index];
    read_tensor("NumPy archive", source, options, || {
        npy::open(archive.read(entry, 0)?, name.clone(), source.place())
    })
}

/// Which of the arrays is to be read: the one asked for, one with a known name, or the only one.
pub(super) fn choose(
    source: &Source,
    named: &[&str],
    options: &ImportOptions,
) -> Result<usize, TraceError> {
    let position = |wanted: &str| named.iter().position(|&name| name == wanted);
    let found = match (&options.member, named) {
        (Some(member), _) => position(member),
        (None, [_]) => Some(0),
        (None, _) => names::COUNTS
            .iter()
            .chain(names::IDS)
            .find_map(|known| position(known)),
    };
    found.ok_or_else(|| {
        let shown: Vec<&str> = named.iter().copied().take(20).collect();
        TraceError::invalid(
            source.place(),
            match &options.member {
                Some(member) => format!("an array {}", quote(member.as_bytes())),
                None => {
                    "one array, or one of a known name such as logical_count (--member chooses)"
                        .to_owned()
                }
            },
            match shown.is_empty() {
                true => "none".to_owned(),
                false => quote(shown.join(", ").as_bytes()),
            },
        )
    })
}
