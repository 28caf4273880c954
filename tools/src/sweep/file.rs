//! Sweep files, and the scenarios they stand for.

use super::expression::Constraint;
use crate::document::Document;
use crate::error::{Error, Place};
use crate::routing::Kept;
use crate::settings::Study;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Most scenarios of one sweep.
const MAX_SCENARIOS: usize = 10_000_000;
/// Tables of a study that say nothing about a scenario.
const NOT_SWEPT: [&str; 12] = [
    "output",
    "export",
    "report",
    "plan",
    "breakdown",
    "execute",
    "collective",
    "kernel",
    "trace",
    "trace-shape",
    "trace-import",
    "ladder",
];

/// Settings of a layer that leave its tokens where they go.
const SAME_ROUTING: [&str; 4] = [
    "layer.model-dim",
    "layer.hidden-dim",
    "layer.capacity-factor",
    "layer.dtype",
];

/// A sweep file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[derive(Default)]
struct Raw {
    base: Table,
    axes: Table,
    zip: Vec<Table>,
    r#where: Vec<RawConstraint>,
    case: Vec<Table>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawConstraint {
    keep: String,
}

/// One setting of one scenario: the dotted name and its value.
pub type Assignment = (String, Value);

/// A sweep, expanded.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The file.
    pub document: Document,
    /// Names of the settings that vary, in the order of the file.
    pub columns: Vec<String>,
    /// What every scenario sets, in order.
    pub scenarios: Vec<Vec<Assignment>>,
    base: Table,
    /// The file as JSON, for results.
    settings: Json,
    /// Names these scenarios under this version of the program.
    pub hash: String,
    /// Routing that scenarios share.
    pub kept: Kept,
}

impl Sweep {
    /// Reads `path` and expands it; `flags` are settings from the command line, which win over `[base]`.
    ///
    /// # Errors
    /// The first mistake in the file, with its line and field.
    pub fn read(path: &Path, flags: &Table) -> Result<Sweep, Error> {
        let document = Document::read(path)?;
        let raw: Raw = document.parse()?;
        let mut base = raw.base.clone();
        for (name, value) in flatten("", flags) {
            set(&mut base, &name, value);
        }
        let reader = Reader {
            document: &document,
            base: &base,
        };
        reader.check_base()?;
        let blocks = reader.blocks(&raw)?;
        let constraints = reader.constraints(&raw)?;
        let (columns, scenarios) = reader.scenarios(&blocks, &constraints, &raw)?;
        let settings = json!({
            "base": base,
            "axes": raw.axes,
            "zip": raw.zip,
            "where": raw.r#where.iter().map(|constraint| &constraint.keep).collect::<Vec<_>>(),
            "case": raw.case,
        });
        let mut sweep = Sweep {
            document,
            columns,
            scenarios,
            base,
            settings,
            hash: String::new(),
            kept: Kept::some(),
        };
        sweep.hash = sweep.digest();
        Ok(sweep)
    }

    /// The sweep in JSON, as results carry it.
    pub fn settings(&self) -> &Json {
        &self.settings
    }

    /// The seed of scenarios that set none.
    pub fn seed(&self) -> u64 {
        let seed = self.base.get("seed").and_then(Value::as_integer);
        seed.and_then(|seed| u64::try_from(seed).ok()).unwrap_or(0)
    }

    /// The study that scenario `index` is.
    ///
    /// # Errors
    /// Settings that do not go together in one study.
    pub fn study(&self, index: usize) -> Result<Study, Error> {
        let table = with(&self.base, &self.scenarios[index]);
        study_of(table).map_err(|error| {
            let place = Place {
                field: Some(error.path().to_string()),
                ..Place::default()
            };
            Error::input(place, error.inner().message())
        })
    }

    /// The settings that vary, in scenario `index`, as cells of a row; empty where it sets none.
    pub fn cells(&self, index: usize) -> Map<String, Json> {
        let set = &self.scenarios[index];
        let value = |column: &String| {
            let found = set.iter().find(|(name, _)| name == column);
            found.map_or(Json::Null, |(_, value)| cell(value))
        };
        self.columns
            .iter()
            .map(|column| (column.clone(), value(column)))
            .collect()
    }

    /// The settings of scenario `index` that say where tokens go: scenarios that agree in them share
    /// their routing.
    pub fn routing(&self, index: usize) -> String {
        let decides = |name: &str| {
            name == "seed"
                || name.starts_with("routing.")
                || name.starts_with("cluster.")
                || (name.starts_with("layer.") && !SAME_ROUTING.contains(&name))
        };
        let set = self.scenarios[index].iter();
        let deciding: Vec<_> = set.filter(|(name, _)| decides(name)).collect();
        json!(deciding).to_string()
    }

    /// A hash of the program's version, every scenario, and every file that a scenario names.
    fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(env!("CARGO_PKG_VERSION"));
        hasher.update(json!(self.base).to_string());
        let mut files = BTreeSet::new();
        for scenario in &self.scenarios {
            hasher.update(json!(scenario).to_string());
            let table = with(&self.base, scenario);
            files.extend(texts(&Value::Table(table)));
        }
        for name in files {
            let path = self.beside(&name);
            // What is no file, or cannot be read, is the scenario's own to complain about.
            if let Some(bytes) = path.is_file().then(|| std::fs::read(&path).ok()).flatten() {
                hasher.update(name.as_bytes());
                hasher.update(bytes);
            }
        }
        let digest = hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn beside(&self, name: &str) -> PathBuf {
        let folder = Path::new(&self.document.name).parent();
        folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
    }
}

/// What reading a sweep file needs throughout.
struct Reader<'a> {
    document: &'a Document,
    base: &'a Table,
}

impl Reader<'_> {
    /// An error at `path` of the file.
    fn mistake(&self, path: &str, message: &str) -> Error {
        self.document.mistake(path, None, message)
    }

    fn check_base(&self) -> Result<(), Error> {
        for table in NOT_SWEPT {
            if self.base.contains_key(table) {
                let message = "expected settings of a scenario, found one that no scenario has";
                return Err(self.mistake(&format!("base.{table}"), message));
            }
        }
        study_of(self.base.clone()).map(|_| ()).map_err(|error| {
            self.mistake(&format!("base.{}", error.path()), error.inner().message())
        })
    }

    /// What varies together: each axis alone, then each `[[zip]]`. A block is a list of alternatives.
    fn blocks(&self, raw: &Raw) -> Result<Vec<Vec<Vec<Assignment>>>, Error> {
        let mut axes = self.lists("axes", &raw.axes)?;
        // Tables of the parser are sorted by name; a reader expects the order of the file.
        axes.sort_by_key(|(name, _)| self.document.position(&format!("axes.{name}")));
        let mut blocks: Vec<Vec<Vec<Assignment>>> = axes
            .into_iter()
            .map(|(name, values)| {
                let one = |value| vec![(name.clone(), value)];
                values.into_iter().map(one).collect()
            })
            .collect();
        for (index, table) in raw.zip.iter().enumerate() {
            let path = format!("zip[{index}]");
            let mut lists = self.lists(&path, table)?;
            lists.sort_by_key(|(name, _)| self.document.position(&format!("{path}.{name}")));
            let Some((first, length)) =
                lists.first().map(|(name, list)| (name.clone(), list.len()))
            else {
                return Err(self.mistake(&path, "expected at least one axis, found none"));
            };
            if let Some((name, list)) = lists.iter().find(|(_, list)| list.len() != length) {
                let message = format!(
                    "expected {length} values as `{first}` has, found {}",
                    list.len()
                );
                return Err(self.mistake(&format!("{path}.{name}"), &message));
            }
            let at = |row: usize| {
                let pick = |(name, list): &(String, Vec<Value>)| (name.clone(), list[row].clone());
                lists.iter().map(pick).collect()
            };
            blocks.push((0..length).map(at).collect());
        }
        let mut names = BTreeSet::new();
        for (name, _) in blocks.iter().filter_map(|block| block.first()).flatten() {
            if !names.insert(name.clone()) {
                let message = format!("expected every setting once, found `{name}` twice");
                return Err(self.mistake("zip", &message));
            }
        }
        Ok(blocks)
    }

    /// The lists of a table of axes, every value tried on its own.
    fn lists(&self, path: &str, table: &Table) -> Result<Vec<(String, Vec<Value>)>, Error> {
        let mut lists = Vec::new();
        for (name, value) in flatten("", table) {
            let place = format!("{path}.{name}");
            let Value::Array(values) = value else {
                let message = format!("expected a list of values, found {}", value.type_str());
                return Err(self.mistake(&place, &message));
            };
            if values.is_empty() {
                return Err(self.mistake(&place, "expected at least one value, found none"));
            }
            for (index, value) in values.iter().enumerate() {
                self.try_value(&place, &format!("{place}[{index}]"), &name, value)?;
            }
            lists.push((name, values));
        }
        Ok(lists)
    }

    /// Fails where no study can have `name` set to `value`.
    fn try_value(&self, axis: &str, place: &str, name: &str, value: &Value) -> Result<(), Error> {
        let first = name.split('.').next().unwrap_or(name);
        if NOT_SWEPT.contains(&first) {
            let message = "expected a setting of a scenario, found one that no scenario has";
            return Err(self.mistake(axis, message));
        }
        let alone = with(&Table::new(), &[(name.to_owned(), value.clone())]);
        match study_of(alone) {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = error.inner().message();
                // A name that nothing has is the axis' mistake, not its value's.
                let unknown = message.starts_with("unknown field");
                Err(self.mistake(if unknown { axis } else { place }, message))
            }
        }
    }

    fn constraints(&self, raw: &Raw) -> Result<Vec<(String, Constraint)>, Error> {
        let read = |(index, raw): (usize, &RawConstraint)| {
            let place = format!("where[{index}].keep");
            let constraint =
                Constraint::new(&raw.keep).map_err(|message| self.mistake(&place, &message))?;
            Ok((place, constraint))
        };
        raw.r#where.iter().enumerate().map(read).collect()
    }

    /// Every combination of one alternative a block that meets the constraints, the last block varying
    /// fastest, and then the `[[case]]`s.
    fn scenarios(
        &self,
        blocks: &[Vec<Vec<Assignment>>],
        constraints: &[(String, Constraint)],
        raw: &Raw,
    ) -> Result<(Vec<String>, Vec<Vec<Assignment>>), Error> {
        let sizes = blocks.iter().map(Vec::len);
        let combinations = sizes.fold(1usize, usize::saturating_mul);
        if combinations.saturating_add(raw.case.len()) > MAX_SCENARIOS {
            let message =
                format!("expected at most {MAX_SCENARIOS} scenarios, found {combinations}");
            return Err(self.mistake("axes", &message));
        }
        let mut columns: Vec<String> = Vec::new();
        let mut scenarios = Vec::new();
        let names = blocks.iter().filter_map(|block| block.first()).flatten();
        columns.extend(names.map(|(name, _)| name.clone()));
        if !blocks.is_empty() || raw.case.is_empty() {
            for number in 0..combinations {
                let scenario = combination(blocks, number);
                if self.keep(&scenario, constraints)? {
                    scenarios.push(scenario);
                }
            }
        }
        for (index, table) in raw.case.iter().enumerate() {
            let scenario = flatten("", table);
            for (name, value) in &scenario {
                let place = format!("case[{index}].{name}");
                self.try_value(&place, &place, name, value)?;
                if !columns.contains(name) {
                    columns.push(name.clone());
                }
            }
            scenarios.push(scenario);
        }
        if scenarios.is_empty() {
            return Err(self.mistake("where", "expected a scenario that is kept, found none"));
        }
        Ok((columns, scenarios))
    }

    fn keep(
        &self,
        scenario: &[Assignment],
        constraints: &[(String, Constraint)],
    ) -> Result<bool, Error> {
        if constraints.is_empty() {
            return Ok(true);
        }
        let settings = with(self.base, scenario);
        for (place, constraint) in constraints {
            let holds = constraint.holds(&settings);
            if !holds.map_err(|message| self.mistake(place, &message))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The `number`-th combination of one alternative a block.
fn combination(blocks: &[Vec<Vec<Assignment>>], number: usize) -> Vec<Assignment> {
    let mut rest = number;
    let mut chosen: Vec<&Vec<Assignment>> = Vec::with_capacity(blocks.len());
    for block in blocks.iter().rev() {
        chosen.push(&block[rest % block.len()]);
        rest /= block.len();
    }
    chosen.into_iter().rev().flatten().cloned().collect()
}

/// The values of a table by dotted name: `cluster.gpus = 8` and `"cluster.gpus" = 8` are one.
fn flatten(prefix: &str, table: &Table) -> Vec<Assignment> {
    let mut found = Vec::new();
    for (key, value) in table {
        let name = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        match value {
            Value::Table(inner) => found.extend(flatten(&name, inner)),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => found.push((name, value.clone())),
        }
    }
    found
}

/// `base` with `assignments` made.
fn with(base: &Table, assignments: &[Assignment]) -> Table {
    let mut table = base.clone();
    for (name, value) in assignments {
        set(&mut table, name, value.clone());
    }
    table
}

/// Sets `name` in a study. A setting of `strategy` is set in all of them, or in Tutel where none is said.
fn set(study: &mut Table, name: &str, value: Value) {
    let Some((first, rest)) = name.split_once('.') else {
        study.insert(name.to_owned(), value);
        return;
    };
    if first == "strategy" {
        let strategies = study.entry(first).or_insert_with(|| {
            let tutel = Table::from_iter([("base".to_owned(), Value::from("tutel"))]);
            Value::Array(vec![Value::Table(tutel)])
        });
        for strategy in strategies.as_array_mut().into_iter().flatten() {
            if let Value::Table(strategy) = strategy {
                strategy.insert(rest.to_owned(), value.clone());
            }
        }
        return;
    }
    let inner = study
        .entry(first)
        .or_insert_with(|| Value::Table(Table::new()));
    match inner {
        Value::Table(inner) => set(inner, rest, value),
        // A table in the place of a value: the schema will say so.
        other => *other = Value::Table(Table::from_iter([(rest.to_owned(), value)])),
    }
}

fn study_of(table: Table) -> Result<Study, serde_path_to_error::Error<toml::de::Error>> {
    serde_path_to_error::deserialize(Value::Table(table))
}

/// All texts in `value`.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Table(table) => table.iter().flat_map(|(_, value)| texts(value)).collect(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => Vec::new(),
    }
}

/// A setting as one cell: lists are written as on the command line.
fn cell(value: &Value) -> Json {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            json!(items.join(","))
        }
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_) => json!(value),
    }
}
