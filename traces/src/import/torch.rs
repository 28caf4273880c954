//! Files of `torch.save`: a tensor, a dictionary of tensors, or what SGLang's expert distribution
//! recorder dumps.
//!
//! | recorder mode | contents |
//! |---|---|
//! | `stat` | `logical_count`, steps x layers x experts, summed over all ranks |
//! | `per_pass` | `records`, each with `forward_pass_id`, `rank` and `global_physical_count`, layers x physical experts; one file a rank |
//! | `per_token` | the same with `topk_ids_of_layer`, layers x tokens x choices (physical, -1 where there is none) |
//!
//! Physical experts are mapped to logical ones by the `last_physical_to_logical_map` beside the
//! records (python/sglang/srt/eplb/expert_distribution.py of SGLang 0.4.6 to 0.5).

use std::io::Read;
use std::sync::Arc;

use super::assemble::{Rows, assemble};
use super::pickle::{self, Object, Pickle, Tensor};
use super::table::Row;
use super::tensor::{Array, Element, read as read_tensor};
use super::tokens::{MAX_EXPERT, are_different};
use super::zipped::{Archive, choose};
use super::{ImportOptions, ImportReport, Imported, Sizes, Steps, names};
use crate::error::{Place, TraceError, quote};
use crate::format::TraceStep;
use crate::input::Source;
use crate::routing::{MAX_CELLS, RoutingStep};

/// Longest pickle; tensors lie beside it.
const MAX_PICKLE: u64 = 256 << 20;

/// Most elements of a tensor that is read at once.
const MAX_ELEMENTS: usize = MAX_CELLS / 4;

struct Dump {
    archive: Archive,
    pickle: Pickle,
    big_endian: bool,
    place: Place,
}

/// Reads `archive`, which has a `data.pkl`.
pub(super) fn read(
    source: &Source,
    archive: Archive,
    options: &ImportOptions,
) -> Result<Imported, TraceError> {
    let dump = Arc::new(Dump::open(archive, source.place())?);
    let root = dump.pickle.root;
    if let Some(Object::List(_)) = dump.pickle.item(root, "records") {
        return read_records(dump, options);
    }
    let (name, tensor) = match dump.pickle.get(root) {
        Object::Tensor(tensor) => ("", tensor),
        _ => {
            let tensors = dump.pickle.tensors(root);
            let named: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
            tensors[choose(source, &named, options)?]
        }
    };
    let layout = match name {
        "logical_count" => "SGLang expert distribution recorder, stat",
        _ => "PyTorch tensor",
    };
    read_tensor(layout, source, options, || dump.array(name, tensor))
}

impl Dump {
    fn open(archive: Archive, place: Place) -> Result<Self, TraceError> {
        let small = |end: &str, most: u64| -> Result<Vec<u8>, TraceError> {
            let mut bytes = Vec::new();
            let Some(entry) = archive.find(end) else {
                return Ok(bytes);
            };
            let place = || place.clone().field(entry.name.as_str());
            let read = archive
                .read(entry, 0)?
                .take(most + 1)
                .read_to_end(&mut bytes);
            read.map_err(|source| TraceError::reading(place(), source))?;
            if bytes.len() as u64 > most {
                return Err(TraceError::invalid(
                    place(),
                    format!("at most {most} bytes"),
                    "more",
                ));
            }
            Ok(bytes)
        };
        let pickle = small("data.pkl", MAX_PICKLE)?;
        let big_endian = small("byteorder", 64)? == b"big";
        let pickle = pickle::load(&pickle, &place)?;
        Ok(Self {
            archive,
            pickle,
            big_endian,
            place,
        })
    }

    /// The elements of `tensor`, which must lie in order.
    fn array(&self, name: &str, tensor: &Tensor) -> Result<Array, TraceError> {
        let place = || match name {
            "" => self.place.clone(),
            name => self.place.clone().field(name),
        };
        let element = match tensor.kind.as_str() {
            "CharStorage" => Element::Signed(1),
            "ShortStorage" => Element::Signed(2),
            "IntStorage" => Element::Signed(4),
            "LongStorage" => Element::Signed(8),
            "ByteStorage" => Element::Unsigned(1),
            "FloatStorage" => Element::Float(4),
            "DoubleStorage" => Element::Float(8),
            other => {
                return Err(TraceError::invalid(
                    place(),
                    "a tensor of integers, float32 or float64",
                    quote(other.as_bytes()),
                ));
            }
        };
        let mut elements = 1_u64;
        for (&extent, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            if stride != elements && extent > 1 {
                return Err(TraceError::invalid(
                    place(),
                    "elements in order (save tensor.contiguous())",
                    format!("strides {:?} of shape {:?}", tensor.strides, tensor.shape),
                ));
            }
            elements = elements.saturating_mul(extent as u64);
        }
        let file = self.archive.find(&format!("data/{}", tensor.storage));
        let size = element.bytes() as u64;
        let bytes = elements.saturating_mul(size);
        let skip = tensor.offset.saturating_mul(size);
        match file {
            Some(entry) if skip.saturating_add(bytes) <= entry.size => Ok(Array {
                name: name.to_owned(),
                element,
                big_endian: self.big_endian,
                shape: tensor.shape.clone(),
                data: Box::new(self.archive.read(entry, skip)?.take(bytes)),
            }),
            entry => Err(TraceError::invalid(
                place(),
                format!("a storage of {} bytes or more", skip.saturating_add(bytes)),
                entry.map_or("none".into(), |entry| entry.size.to_string()),
            )),
        }
    }

    /// All elements of a small tensor; fractions and what is too large become -1.
    fn values(&self, name: &str, tensor: &Tensor) -> Result<Vec<i64>, TraceError> {
        let place = || self.place.clone().field(name);
        let mut array = self.array(name, tensor)?;
        let extents = array.shape.iter();
        let elements = extents.fold(1_usize, |product, &extent| product.saturating_mul(extent));
        if elements > MAX_ELEMENTS {
            return Err(TraceError::invalid(
                place(),
                format!("at most {MAX_ELEMENTS} elements"),
                elements.to_string(),
            ));
        }
        let mut bytes = Vec::new();
        let read = array.data.read_to_end(&mut bytes);
        read.map_err(|source| TraceError::reading(place(), source))?;
        let size = array.element.bytes();
        if bytes.len() != elements * size {
            return Err(TraceError::invalid(
                place(),
                format!("{} bytes (is the file cut off?)", elements * size),
                bytes.len().to_string(),
            ));
        }
        let signed = matches!(array.element, Element::Signed(_));
        let value = |raw: &[u8]| {
            let mut eight = [0; 8];
            eight[..size].copy_from_slice(raw);
            if self.big_endian {
                eight[..size].reverse();
            }
            let unused = 64 - 8 * size as u32;
            let value = (i64::from_le_bytes(eight) << unused) >> unused;
            if signed { value } else { -1 }
        };
        Ok(bytes.chunks_exact(size).map(value).collect())
    }
}

/// One forward pass of a rank.
#[derive(Clone)]
struct Pass {
    number: u64,
    tensor: Tensor,
}

/// Logical expert of every physical one, by layer.
struct Mapping {
    layers: usize,
    physical: usize,
    logical: Vec<u32>,
    /// Number of logical experts.
    experts: usize,
}

impl Mapping {
    fn read(dump: &Dump) -> Result<Self, TraceError> {
        const NAME: &str = "last_physical_to_logical_map";
        let place = || dump.place.clone().field(NAME);
        let Some(Object::Tensor(tensor)) = dump.pickle.item(dump.pickle.root, NAME) else {
            return Err(TraceError::invalid(place(), "a tensor", "none"));
        };
        let [layers, physical] = tensor.shape[..] else {
            let found = format!("{:?}", tensor.shape);
            return Err(TraceError::invalid(place(), "layers x experts", found));
        };
        let values = dump.values(NAME, tensor)?.into_iter().map(|value| {
            let logical = u64::try_from(value).ok().filter(|&id| id <= MAX_EXPERT);
            logical.map(|id| id as u32).ok_or_else(|| {
                let expected = format!("expert ids from 0 to {MAX_EXPERT}");
                TraceError::invalid(place(), expected, value.to_string())
            })
        });
        let logical = values.collect::<Result<Vec<u32>, _>>()?;
        let experts = logical.iter().max().map_or(1, |&most| most as usize + 1);
        Ok(Self {
            layers,
            physical,
            logical,
            experts,
        })
    }

    fn of(&self, layer: usize, physical: i64) -> Option<u32> {
        let physical = usize::try_from(physical).ok()?;
        let inside = layer < self.layers && physical < self.physical;
        inside.then(|| self.logical[layer * self.physical + physical])
    }
}

fn read_records(dump: Arc<Dump>, options: &ImportOptions) -> Result<Imported, TraceError> {
    let pickle = &dump.pickle;
    let Some(Object::List(records)) = pickle.item(pickle.root, "records") else {
        return Err(TraceError::invalid(dump.place.clone(), "records", "none"));
    };
    let per_token = records
        .first()
        .is_some_and(|&first| pickle.item(first, "topk_ids_of_layer").is_some());
    let name = if per_token {
        "topk_ids_of_layer"
    } else {
        "global_physical_count"
    };
    let mut passes = Vec::new();
    for (index, &record) in records.iter().enumerate() {
        let number = match pickle.item(record, "forward_pass_id") {
            Some(&Object::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        match (number, pickle.item(record, name)) {
            (Some(number), Some(Object::Tensor(tensor))) => passes.push(Pass {
                number,
                tensor: tensor.clone(),
            }),
            _ => {
                return Err(TraceError::invalid(
                    dump.place.clone().field(format!("record {index}")),
                    format!("forward_pass_id and {name}"),
                    "something else",
                ));
            }
        }
    }
    passes.sort_by_key(|pass| pass.number);
    if let Some(two) = passes.windows(2).find(|two| two[0].number == two[1].number) {
        return Err(TraceError::invalid(
            dump.place.clone().field("forward_pass_id"),
            "every forward pass once",
            format!("{} again", two[0].number),
        ));
    }
    if passes.is_empty() {
        let expected = "at least one record";
        return Err(TraceError::invalid(dump.place.clone(), expected, "none"));
    }
    let mapping = Arc::new(Mapping::read(&dump)?);
    let note = "physical experts are those of the end of the recording".to_owned();
    if per_token {
        let mut options = options.clone();
        options.experts.get_or_insert(mapping.experts);
        // One file holds one rank.
        options.source_ranks = 1;
        let layout = "SGLang expert distribution recorder, per_token";
        let place = dump.place.clone();
        let mut imported = assemble(layout, place, &options, || {
            Ok(PassTokens {
                dump: Arc::clone(&dump),
                mapping: Arc::clone(&mapping),
                passes: passes.clone(),
                pass: 0,
                ids: Vec::new(),
                token: 0,
                top_k: options.top_k.map(|top_k| top_k as usize),
                padding: 0,
            })
        })?;
        imported.report.assumed.push(note);
        return Ok(imported);
    }
    let mut assumed = vec![note, "one source rank: the file is of one".into()];
    if options.top_k.is_none() {
        assumed.push(names::TOP_K_ASSUMED.into());
    }
    let sizes = Sizes {
        experts: options
            .experts
            .unwrap_or(mapping.experts)
            .max(mapping.experts),
        top_k: options.top_k.unwrap_or(1),
        source_ranks: 1,
        tokens_per_rank: None,
    };
    let steps = PassCounts {
        experts: sizes.experts,
        top_k: sizes.top_k,
        dump,
        mapping,
        passes,
        pass: 0,
        layer: 0,
        values: Vec::new(),
    };
    let layout = "SGLang expert distribution recorder, per_pass";
    Ok(Imported::new(layout, sizes, assumed, steps))
}

/// Counts of every forward pass.
struct PassCounts {
    dump: Arc<Dump>,
    mapping: Arc<Mapping>,
    passes: Vec<Pass>,
    experts: usize,
    top_k: u32,
    pass: usize,
    layer: usize,
    values: Vec<i64>,
}

impl Steps for PassCounts {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        let Some(pass) = self.passes.get(self.pass) else {
            return Ok(None);
        };
        let (layers, physical) = (self.mapping.layers, self.mapping.physical);
        let place = || {
            let field = format!("forward pass {}, layer {}", pass.number, self.layer);
            self.dump.place.clone().field(field)
        };
        if self.layer == 0 {
            if pass.tensor.shape != [layers, physical] {
                return Err(TraceError::invalid(
                    place(),
                    format!("{layers} layers x {physical} experts"),
                    format!("{:?}", pass.tensor.shape),
                ));
            }
            self.values = self.dump.values("global_physical_count", &pass.tensor)?;
        }
        let row = &self.values[self.layer * physical..][..physical];
        let mut counts = vec![0_u32; self.experts];
        for (index, &count) in row.iter().enumerate() {
            let into = self.mapping.of(self.layer, index as i64);
            let sum = into.and_then(|into| {
                let count = u32::try_from(count).ok()?;
                counts[into as usize].checked_add(count)
            });
            match (into, sum) {
                (Some(into), Some(sum)) => counts[into as usize] = sum,
                _ => {
                    let expected = format!("a whole number from 0 to {}", u32::MAX);
                    return Err(TraceError::invalid(place(), expected, count.to_string()));
                }
            }
        }
        let (number, layer) = (pass.number, self.layer as u32);
        let built = RoutingStep::new(number, layer, self.top_k, self.experts, counts);
        let built = built.map_err(|error| error.at(place()))?;
        self.layer += 1;
        if self.layer == layers {
            (self.layer, self.pass) = (0, self.pass + 1);
        }
        Ok(Some(TraceStep::Counts(built)))
    }
}

/// Tokens of every forward pass.
struct PassTokens {
    dump: Arc<Dump>,
    mapping: Arc<Mapping>,
    passes: Vec<Pass>,
    pass: usize,
    /// Of the pass at hand: layers x tokens x choices.
    ids: Vec<i64>,
    token: usize,
    top_k: Option<usize>,
    padding: u64,
}

impl PassTokens {
    fn read_token(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        let pass = &self.passes[self.pass];
        let place = |layer: usize| {
            let (number, token) = (pass.number, self.token);
            let field = format!("forward pass {number}, token {token}, layer {layer}");
            self.dump.place.clone().field(field)
        };
        let [layers, tokens, choices] = pass.tensor.shape[..] else {
            let found = format!("{:?}", pass.tensor.shape);
            let expected = "layers x tokens x choices";
            return Err(TraceError::invalid(place(0), expected, found));
        };
        row.clear();
        row.layers.clear();
        row.step = Some(pass.number);
        for layer in 0..layers {
            let at = (layer * tokens + self.token) * choices;
            let chosen = self.ids[at..at + choices].iter().take_while(|&&id| id >= 0);
            let before = row.ids.len();
            for &physical in chosen {
                let logical = self.mapping.of(layer, physical);
                row.ids.push(logical.ok_or_else(|| {
                    let expected = format!("physical experts below {}", self.mapping.physical);
                    TraceError::invalid(place(layer), expected, physical.to_string())
                })?);
            }
            let found = row.ids.len() - before;
            if found == 0 {
                continue;
            }
            let wanted = *self.top_k.get_or_insert(found);
            if found < wanted || !are_different(&row.ids[before..]) {
                return Err(TraceError::invalid(
                    place(layer),
                    format!("{wanted} different experts"),
                    format!("{:?}", &row.ids[before..]),
                ));
            }
            row.ids.truncate(before + wanted);
            row.layers.push(layer as u32);
        }
        Ok(!row.layers.is_empty())
    }
}

impl Rows for PassTokens {
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        loop {
            let Some(pass) = self.passes.get(self.pass) else {
                return Ok(false);
            };
            let tokens = pass.tensor.shape.get(1).copied().unwrap_or(0);
            if self.token == 0 {
                self.ids = self.dump.values("topk_ids_of_layer", &pass.tensor)?;
            }
            if self.token >= tokens {
                (self.pass, self.token) = (self.pass + 1, 0);
                continue;
            }
            let real = self.read_token(row)?;
            self.token += 1;
            if real {
                return Ok(true);
            }
            self.padding += 1;
        }
    }

    fn place(&self) -> Place {
        let number = self.passes.get(self.pass).map_or(0, |pass| pass.number);
        self.dump
            .place
            .clone()
            .field(format!("forward pass {number}"))
    }

    fn report(&self, report: &mut ImportReport) {
        report.skipped_lines += self.padding;
    }
}
