//! `sweep` and `merge`: many scenarios, and the shards of them put together.

use crate::cli::{MergeArgs, SweepArgs};
use crate::error::{Error, Exit, Place};
use crate::output;
use crate::resolve::Given;
use crate::session::Session;
use crate::settings::EconomySettings;
use crate::sweep::{Header, Journal, Shard, Sweep, launch, run as runs};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Runs a sweep, a shard of it, or hands it to a scheduler.
///
/// # Errors
/// A sweep file that cannot be used, or a journal that does not belong to it.
pub fn run(args: &SweepArgs, given: &Given, session: &mut Session<'_>) -> Result<Exit, Error> {
    let flag = |name: &str, message: &str| Err(Error::input(Place::flag(name), message));
    if given.document.is_some() {
        return flag(
            "--config",
            "expected settings in [base] of the sweep file, found a study",
        );
    }
    let sweep = Sweep::read(&args.file, &from_flags(given.flags.seed, &args.economy)?)?;
    if let Some(scheduler) = args.launch.scheduler {
        return launch::launch(
            scheduler,
            args,
            (sweep.scenarios.len(), given.flags.seed),
            session,
        );
    }
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let output = session.output.file.clone();
    if output.is_none() && (args.resume || args.shard.is_some()) {
        return flag(
            "--output",
            "expected a file to keep what is done in, found none",
        );
    }
    let header = Header {
        moeplan: env!("CARGO_PKG_VERSION").to_owned(),
        sweep: sweep.hash.clone(),
        scenarios: sweep.scenarios.len(),
        shard,
        columns: sweep.columns.clone(),
        seed: sweep.seed(),
        settings: sweep.settings().clone(),
    };
    let partial = output.as_deref().map(partial);
    let mut journal = match &partial {
        None => Journal::in_memory(header),
        Some(partial) if args.resume && partial.exists() => Journal::resume(partial, header)?,
        Some(_) if args.resume && finished(output.as_deref(), &header) => {
            session.note("nothing is left to do");
            return Ok(Exit::Done);
        }
        Some(partial) if partial.exists() => {
            let message =
                "expected no journal of an earlier run: --resume goes on with it, or remove it";
            return Err(Error::input(
                Place::file(partial.display().to_string()),
                message,
            ));
        }
        Some(partial) => Journal::create(partial, header)?,
    };
    let known = journal.len();
    if known > 0 {
        session.note(&format!("{known} scenarios were done before"));
    }
    if runs::run(&sweep, shard, &mut journal, session)? {
        if let Some(partial) = &partial {
            session.note(&format!(
                "interrupted: {} scenarios are kept in {}, --resume goes on",
                journal.len(),
                partial.display()
            ));
        }
        return Ok(Exit::Interrupted);
    }
    match (&output, args.shard) {
        // A shard is kept as what it is, for `merge` to read.
        (Some(path), Some(_)) => journal.write(path)?,
        (Some(_) | None, _) => output::sweep::write(&journal.header, journal.rows()?, session)?,
    }
    if let Some(partial) = partial {
        // The result is there; a journal left behind would only be in the way.
        let _ = std::fs::remove_file(partial);
    }
    Ok(Exit::Done)
}

/// Whether `output` is this very shard, complete.
fn finished(output: Option<&Path>, header: &Header) -> bool {
    let loaded = output.and_then(|path| Journal::load(path).ok());
    let all = header.shard.indices(header.scenarios).count();
    loaded.is_some_and(|(journal, _)| journal.header == *header && journal.len() == all)
}

/// Where what is done is kept until all is.
fn partial(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Settings from flags, as a study file would say them.
fn from_flags(seed: Option<u64>, economy: &EconomySettings) -> Result<Table, Error> {
    let mut flags = Table::new();
    if let Some(seed) = seed {
        let seed = i64::try_from(seed).map_err(|_| {
            Error::input(
                Place::flag("--seed"),
                "expected a number below 2^63 in a sweep",
            )
        })?;
        flags.insert("seed".into(), Value::Integer(seed));
    }
    if !economy.is_empty() {
        // A flag's path is relative to where the program runs, a file's to the file.
        let price_list = economy
            .price_list
            .as_deref()
            .map(std::path::absolute)
            .transpose()
            .map_err(|error| Error::input(Place::flag("--price-list"), error.to_string()))?;
        let economy = EconomySettings {
            price_list,
            ..economy.clone()
        };
        let table = Table::try_from(&economy)
            .map_err(|error| Error::Unexpected(format!("settings: {error}")))?;
        flags.insert("economy".into(), Value::Table(table));
    }
    Ok(flags)
}

/// Puts all shards of one sweep together.
///
/// # Errors
/// A shard that is missing, unfinished, given twice or of another sweep.
pub fn merge(args: &MergeArgs, session: &mut Session<'_>) -> Result<Exit, Error> {
    let mut shards: BTreeMap<Shard, (String, Journal)> = BTreeMap::new();
    for path in &args.shards {
        let name = path.display().to_string();
        let wrong = |message: String| Err(Error::input(Place::file(name.clone()), message));
        let (journal, _) = Journal::load(path)?;
        let header = &journal.header;
        if let Some((first, other)) = shards.values().next()
            && (
                &other.header.sweep,
                &other.header.moeplan,
                other.header.shard.of,
            ) != (&header.sweep, &header.moeplan, header.shard.of)
        {
            return wrong(format!(
                "expected a shard of the sweep of {first}, found one of another"
            ));
        }
        let shard = header.shard;
        let wanted = shard.indices(header.scenarios).count();
        if journal.len() != wanted {
            return wrong(format!(
                "expected all {wanted} scenarios of shard {shard}, found {}: it is not finished",
                journal.len()
            ));
        }
        if let Some((other, _)) = shards.get(&shard) {
            return wrong(format!(
                "expected shard {shard} once, found it in {other} too"
            ));
        }
        shards.insert(shard, (name, journal));
    }
    let Some(of) = shards.keys().next().map(|shard| shard.of) else {
        return Err(Error::input(
            Place::default(),
            "expected shards, found none",
        ));
    };
    let missing = (1..=of).map(|number| Shard { number, of });
    if let Some(shard) = missing
        .into_iter()
        .find(|shard| !shards.contains_key(shard))
    {
        let message = format!("expected all {of} shards, found no {shard}");
        return Err(Error::input(Place::default(), message));
    }
    let mut headers = Vec::new();
    let mut done = BTreeMap::new();
    for (_, journal) in shards.into_values() {
        headers.push(journal.header.clone());
        done.extend(journal.into_done());
    }
    let mut rows: Vec<Json> = Vec::new();
    for text in done.values() {
        let of_scenario: Vec<Json> = serde_json::from_str(text)
            .map_err(|error| Error::Unexpected(format!("journal: {error}")))?;
        rows.extend(of_scenario);
    }
    output::sweep::write(&headers[0], rows, session)?;
    Ok(Exit::Done)
}
