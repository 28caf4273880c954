//! Pickles, as far as `torch.save` needs them for tensors, numbers, texts and containers of them.
//!
//! A pickle is a program that calls Python functions by name. Nothing is called here: the one
//! function that rebuilds a tensor out of its storage is understood, and so is an empty
//! `OrderedDict`; any other name is an error that says which.

use crate::error::{Place, TraceError, quote};
use crate::input::Source;

/// Most objects. A pickle that refers to one of its objects many times has no more objects for it.
const MAX_OBJECTS: usize = 1 << 24;

/// A place among the objects.
pub(super) type Id = usize;

/// A tensor: part of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Name of the storage's file.
    pub(super) storage: String,
    /// `IntStorage` and the like.
    pub(super) kind: String,
    /// First element in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// Elements from one to the next on every axis.
    pub(super) strides: Vec<u64>,
}

/// An object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Tensor(Tensor),
    /// A name that may only be called in ways that are known.
    Global(String),
    /// Storage type and file.
    Storage(String, String),
    /// Bottom of a list that is being built.
    Mark,
}

/// All objects of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    objects: Vec<Object>,
    /// What was pickled.
    pub(super) root: Id,
}

impl Pickle {
    pub(super) fn get(&self, id: Id) -> &Object {
        &self.objects[id]
    }

    /// The value of `key`, if `id` is a dictionary that has it.
    pub(super) fn item(&self, id: Id, key: &str) -> Option<&Object> {
        let Object::Dict(items) = self.get(id) else {
            return None;
        };
        let found = items.iter().find(|&&(name, _)| self.is_text(name, key));
        found.map(|&(_, value)| self.get(value))
    }

    fn is_text(&self, id: Id, text: &str) -> bool {
        matches!(self.get(id), Object::Text(found) if found == text)
    }

    /// Texts and tensors of a dictionary.
    pub(super) fn tensors(&self, id: Id) -> Vec<(&str, &Tensor)> {
        let Object::Dict(items) = self.get(id) else {
            return Vec::new();
        };
        let named =
            items
                .iter()
                .filter_map(|&(key, value)| match (self.get(key), self.get(value)) {
                    (Object::Text(name), Object::Tensor(tensor)) => Some((name.as_str(), tensor)),
                    _ => None,
                });
        named.collect()
    }
}

/// The error for a pickle that is not in an archive of `torch.save`.
pub(super) fn bare(source: &Source) -> TraceError {
    TraceError::invalid(
        source.place(),
        "a file of torch.save (since PyTorch 1.6), numpy.save or numpy.savez",
        "a bare pickle, which is a program and is not run",
    )
}

/// Reads a pickle. `place` is the file, for messages.
pub(super) fn load(bytes: &[u8], place: &Place) -> Result<Pickle, TraceError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        opcode_at: 0,
        place,
        objects: Vec::new(),
        stack: Vec::new(),
        memo: Vec::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok(Pickle {
        objects: machine.objects,
        root,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the opcode at hand is.
    opcode_at: usize,
    place: &'a Place,
    objects: Vec<Object>,
    stack: Vec<Id>,
    memo: Vec<Option<Id>>,
}

impl Machine<'_> {
    fn fail(&self, expected: impl Into<String>, found: impl Into<String>) -> TraceError {
        let field = format!("pickle, byte {}", self.opcode_at);
        TraceError::invalid(self.place.clone().field(field), expected, found)
    }

    /// Runs one opcode; false at the end.
    fn step(&mut self) -> Result<bool, TraceError> {
        self.opcode_at = self.at;
        let opcode = self.take(1)?[0];
        match opcode {
            // PROTO, FRAME: nothing to do.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(false),
            b'(' => self.push(Object::Mark)?,
            b'N' => self.push(Object::None)?,
            0x88 => self.push(Object::Bool(true))?,
            0x89 => self.push(Object::Bool(false))?,
            b'J' => {
                let value = self.number(4)? as u32 as i32;
                self.push(Object::Int(value.into()))?;
            }
            b'K' => {
                let value = self.number(1)?;
                self.push(Object::Int(value as i64))?;
            }
            b'M' => {
                let value = self.number(2)?;
                self.push(Object::Int(value as i64))?;
            }
            0x8a => self.long()?,
            b'G' => {
                let eight = self.take(8)?.try_into().unwrap_or_default();
                self.push(Object::Float(f64::from_be_bytes(eight)))?;
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b')' => self.push(Object::Tuple(Vec::new()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items))?;
            }
            b']' => self.push(Object::List(Vec::new()))?,
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            b'q' => {
                let index = self.number(1)?;
                self.remember(index)?;
            }
            b'r' => {
                let index = self.number(4)?;
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let index = self.number(1)?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.number(4)?;
                self.recall(index)?;
            }
            b'c' => self.global()?,
            0x93 => self.stack_global()?,
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            other => {
                return Err(self.fail(
                    "tensors, numbers, texts, lists, tuples and dictionaries (code in a pickle is never run)",
                    format!("opcode {}", name_of(other)),
                ));
            }
        }
        Ok(true)
    }

    fn take(&mut self, bytes: usize) -> Result<&[u8], TraceError> {
        let end = self.at.checked_add(bytes);
        match end.filter(|&end| end <= self.bytes.len()) {
            Some(end) => {
                let taken = &self.bytes[self.at..end];
                self.at = end;
                Ok(taken)
            }
            None => Err(self.fail(
                format!("{bytes} more bytes"),
                "the end of the pickle (is the file cut off?)",
            )),
        }
    }

    fn number(&mut self, bytes: usize) -> Result<u64, TraceError> {
        let taken = self.take(bytes)?;
        let value = taken.iter().rev();
        Ok(value.fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// LONG1: little-endian two's complement.
    fn long(&mut self) -> Result<(), TraceError> {
        let length = self.number(1)? as usize;
        if length > 8 {
            return Err(self.fail("integers of at most 64 bits", format!("{length} bytes")));
        }
        let unused = 64 - 8 * length as u32;
        let value = self.number(length)?;
        let value = value.checked_shl(unused).unwrap_or(0) as i64;
        self.push(Object::Int(value.checked_shr(unused).unwrap_or(0)))
    }

    fn text(&mut self, length_bytes: usize) -> Result<(), TraceError> {
        let length = self.number(length_bytes)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(self.take(length)?).map(str::to_owned);
        let text = text.map_err(|_| self.fail("UTF-8 text", "bytes that are not"))?;
        self.push(Object::Text(text))
    }

    fn push(&mut self, object: Object) -> Result<(), TraceError> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(self.fail(format!("at most {MAX_OBJECTS} objects"), "more"));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, TraceError> {
        match self.stack.pop() {
            Some(id) if self.objects[id] != Object::Mark => Ok(id),
            _ => Err(self.fail("an object on the stack", "none")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, TraceError> {
        let marked = self
            .stack
            .iter()
            .rposition(|&id| self.objects[id] == Object::Mark);
        match marked {
            Some(at) => {
                let items = self.stack.split_off(at + 1);
                self.stack.pop();
                Ok(items)
            }
            None => Err(self.fail("a mark on the stack", "none")),
        }
    }

    fn tuple(&mut self, length: usize) -> Result<(), TraceError> {
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Object::Tuple(items))
    }

    /// The object on top of the stack, which stays there.
    fn top(&self) -> Result<Id, TraceError> {
        let top = self.stack.last().copied();
        top.ok_or_else(|| self.fail("an object on the stack", "none"))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), TraceError> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(list) => {
                list.extend(items);
                Ok(())
            }
            other => {
                let found = kind_of(other);
                Err(self.fail("a list to append to", found))
            }
        }
    }

    fn set(&mut self, items: &[Id]) -> Result<(), TraceError> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Dict(dict) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            other => {
                let found = kind_of(other);
                Err(self.fail("a dictionary to set items of", found))
            }
        }
    }

    fn remember(&mut self, index: u64) -> Result<(), TraceError> {
        let top = self.top()?;
        // Numbers are given in order: a larger one than there are bytes is made up.
        if index > self.bytes.len() as u64 {
            return Err(self.fail("numbers of objects in order", index.to_string()));
        }
        let index = index as usize;
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), TraceError> {
        let known = usize::try_from(index).ok();
        match known.and_then(|index| self.memo.get(index).copied().flatten()) {
            Some(id) => {
                if self.stack.len() >= MAX_OBJECTS {
                    return Err(self.fail(format!("at most {MAX_OBJECTS} objects"), "more"));
                }
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.fail("an object that was numbered", index.to_string())),
        }
    }

    fn global(&mut self) -> Result<(), TraceError> {
        let mut line = || {
            let rest = &self.bytes[self.at..];
            let length = rest.iter().position(|&byte| byte == b'\n')?;
            self.at += length + 1;
            std::str::from_utf8(&rest[..length]).ok()
        };
        match (line(), line()) {
            (Some(module), Some(name)) => self.push_global(&format!("{module}.{name}")),
            _ => Err(self.fail("the name of a function", "the end of the pickle")),
        }
    }

    fn stack_global(&mut self) -> Result<(), TraceError> {
        let name = self.pop()?;
        let module = self.pop()?;
        match (&self.objects[module], &self.objects[name]) {
            (Object::Text(module), Object::Text(name)) => {
                let global = format!("{module}.{name}");
                self.push_global(&global)
            }
            _ => Err(self.fail("the name of a function", "something else")),
        }
    }

    fn push_global(&mut self, global: &str) -> Result<(), TraceError> {
        let storage = global
            .strip_prefix("torch.")
            .is_some_and(|rest| rest.ends_with("Storage") && !rest.contains('.'));
        if storage || [REBUILD, ORDERED].contains(&global) {
            return self.push(Object::Global(global.to_owned()));
        }
        Err(self.fail(
            format!(
                "{REBUILD}, {ORDERED} and storages of torch only (code in a pickle is never run)"
            ),
            quote(global.as_bytes()),
        ))
    }

    /// BINPERSID: `('storage', type, file, device, elements)`.
    fn persistent(&mut self) -> Result<(), TraceError> {
        let id = self.pop()?;
        if let Object::Tuple(items) = &self.objects[id]
            && let [tag, kind, file, ..] = items[..]
            && let (Object::Text(tag), Object::Global(kind), Object::Text(file)) =
                (&self.objects[tag], &self.objects[kind], &self.objects[file])
            && tag == "storage"
        {
            let kind = kind.trim_start_matches("torch.").to_owned();
            let storage = Object::Storage(kind, file.clone());
            return self.push(storage);
        }
        Err(self.fail("the storage of a tensor", "another reference"))
    }

    /// REDUCE: a call of a function by its arguments.
    fn call(&mut self) -> Result<(), TraceError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let (Object::Global(function), Object::Tuple(arguments)) =
            (&self.objects[function], &self.objects[arguments])
        else {
            return Err(self.fail("a function and its arguments", "something else"));
        };
        let made = match function.as_str() {
            ORDERED if arguments.is_empty() => Some(Object::Dict(Vec::new())),
            REBUILD => self.tensor(arguments).map(Object::Tensor),
            _ => None,
        };
        match made {
            Some(object) => self.push(object),
            None => Err(self.fail(
                "a call that rebuilds a tensor",
                format!("{function} with {} arguments", arguments.len()),
            )),
        }
    }

    /// `(storage, offset, shape, strides, ...)`.
    fn tensor(&self, arguments: &[Id]) -> Option<Tensor> {
        let [storage, offset, shape, strides, ..] = *arguments else {
            return None;
        };
        let Object::Storage(kind, file) = &self.objects[storage] else {
            return None;
        };
        let int = |id: Id| match self.objects[id] {
            Object::Int(value) => u64::try_from(value).ok(),
            _ => None,
        };
        let ints = |id: Id| match &self.objects[id] {
            Object::Tuple(items) if items.len() <= 8 => items
                .iter()
                .map(|&item| int(item))
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let shape = ints(shape)?.into_iter();
        let shape: Option<Vec<usize>> = shape.map(|extent| extent.try_into().ok()).collect();
        Some(Tensor {
            storage: file.clone(),
            kind: kind.clone(),
            offset: int(offset)?,
            shape: shape?,
            strides: ints(strides)?,
        })
    }
}

const REBUILD: &str = "torch._utils._rebuild_tensor_v2";
const ORDERED: &str = "collections.OrderedDict";

/// The name of an opcode that is refused, as `pickletools` has it.
fn name_of(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'b' => "BUILD",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'C' | b'B' | 0x8e => "BINBYTES",
        0x8f..=0x91 => "SET",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        _ => return format!("0x{opcode:02x}"),
    };
    format!("{name} (0x{opcode:02x})")
}

fn kind_of(object: &Object) -> &'static str {
    match object {
        Object::None => "None",
        Object::Bool(_) => "a bool",
        Object::Int(_) => "an integer",
        Object::Float(_) => "a float",
        Object::Text(_) => "a text",
        Object::Tuple(_) => "a tuple",
        Object::List(_) => "a list",
        Object::Dict(_) => "a dictionary",
        Object::Tensor(_) => "a tensor",
        Object::Global(_) => "a function",
        Object::Storage(..) => "a storage",
        Object::Mark => "a mark",
    }
}
