//! A sweep handed to an engine that the user runs already: Slurm or Kubernetes.

use crate::cli::SweepArgs;
use crate::error::{Error, Exit, Place};
use crate::output;
use crate::session::Session;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who runs the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheduler {
    /// A job array, and a job that merges when all of it went well.
    Slurm,
    /// An indexed job, and a job that merges when all shards are there.
    Kubernetes,
}

/// Most shards of one launch: Slurm's own limit for an array is 1,001 unless it is configured.
const MAX_SHARDS: usize = 10_000;

/// What a launch is made of, as a shell reads it.
struct Parts {
    program: String,
    file: String,
    output: String,
    shards: usize,
    flags: String,
}

/// Writes what `scheduler` needs and, unless it is a dry run, submits it.
///
/// # Errors
/// Flags that are missing, or no such scheduler on this machine.
pub fn launch(
    scheduler: Scheduler,
    args: &SweepArgs,
    (scenarios, seed): (usize, Option<u64>),
    session: &mut Session<'_>,
) -> Result<Exit, Error> {
    let flag = |name: &str, message: String| Err(Error::input(Place::flag(name), message));
    let Some(output) = session.output.file.clone() else {
        return flag(
            "--output",
            "expected a file that all machines can reach, found none".into(),
        );
    };
    let shards = args.launch.shards.unwrap_or(8).min(scenarios);
    if !(1..=MAX_SHARDS).contains(&shards) {
        return flag(
            "--shards",
            format!("expected 1 to {MAX_SHARDS}, found {shards}"),
        );
    }
    if args.shard.is_some() {
        return flag(
            "--shard",
            "expected none, as a launch runs all of them".into(),
        );
    }
    match (scheduler, args.launch.dry_run) {
        (Scheduler::Slurm, dry) => {
            let parts = parts(args, &output, (shards, seed), session, true)?;
            let array = slurm_array(&parts, &args.launch.sbatch_option);
            let merge = slurm_merge(&parts, &args.launch.sbatch_option);
            if dry {
                print(&format!("{array}\n{merge}"), session)
            } else {
                submit(&output, &array, &merge, session)
            }
        }
        (Scheduler::Kubernetes, true) => {
            let parts = parts(args, &output, (shards, seed), session, false)?;
            print(
                &kubernetes(&parts, &args.launch.image, &args.launch.volume_claim),
                session,
            )
        }
        (Scheduler::Kubernetes, false) => flag(
            "--launch",
            "expected --dry-run: it prints the manifest, `kubectl apply -f -` takes it".into(),
        ),
    }
}

fn print(text: &str, session: &mut Session<'_>) -> Result<Exit, Error> {
    let written = session.streams.stdout.write_all(text.as_bytes());
    written.map_err(|source| Error::Write {
        path: "standard output".into(),
        source,
    })?;
    Ok(Exit::Done)
}

/// The paths and flags of the shards; absolute where they run on this file system.
fn parts(
    args: &SweepArgs,
    output: &Path,
    (shards, seed): (usize, Option<u64>),
    session: &Session<'_>,
    here: bool,
) -> Result<Parts, Error> {
    let path = |path: &Path| -> Result<String, Error> {
        let path = match here {
            true => std::path::absolute(path).map_err(|source| Error::Read {
                path: path.display().to_string(),
                source,
            })?,
            false => path.to_owned(),
        };
        Ok(quoted(&path.display().to_string()))
    };
    let program = match here {
        true => path(&std::env::current_exe().unwrap_or_else(|_| PathBuf::from("moeplan")))?,
        false => "moeplan".into(),
    };
    let mut flags = String::new();
    if let Some(list) = &args.economy.price_list {
        flags += &format!(" --price-list {}", path(list)?);
    }
    if let Some(price) = args.economy.price {
        flags += &format!(" --price {price}");
    }
    if let Some(seed) = seed {
        flags += &format!(" --seed {seed}");
    }
    if let Some(threads) = session.output.threads {
        flags += &format!(" --threads {threads}");
    }
    Ok(Parts {
        program,
        file: path(&args.file)?,
        output: path(output)?,
        shards,
        flags,
    })
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn options(options: &[String]) -> String {
    options
        .iter()
        .map(|option| format!("#SBATCH {option}\n"))
        .collect()
}

fn slurm_array(parts: &Parts, extra: &[String]) -> String {
    let Parts {
        program,
        file,
        output,
        shards,
        flags,
    } = parts;
    format!(
        "#!/bin/sh\n\
         #SBATCH --job-name=moeplan-sweep\n\
         #SBATCH --array=1-{shards}\n\
         {}set -eu\n\
         # A task that is started again goes on where it was.\n\
         exec {program} --quiet sweep {file} --shard \"$SLURM_ARRAY_TASK_ID/{shards}\" --resume \\\n  \
           --output {output}.shard-\"$SLURM_ARRAY_TASK_ID\"{flags}\n",
        options(extra)
    )
}

fn slurm_merge(parts: &Parts, extra: &[String]) -> String {
    let Parts {
        program,
        output,
        shards,
        ..
    } = parts;
    format!(
        "#!/bin/sh\n\
         #SBATCH --job-name=moeplan-merge\n\
         {}set -eu\n\
         set --\n\
         for shard in $(seq 1 {shards}); do set -- \"$@\" {output}.shard-\"$shard\"; done\n\
         exec {program} --quiet merge \"$@\" --output {output}\n",
        options(extra)
    )
}

/// Writes both scripts beside `output` and hands them to `sbatch`.
fn submit(
    output: &Path,
    array: &str,
    merge: &str,
    session: &mut Session<'_>,
) -> Result<Exit, Error> {
    let script = |ending: &str| {
        let mut name = output.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (array_path, merge_path) = (script(".array.sbatch"), script(".merge.sbatch"));
    let found = Command::new("sbatch").arg("--version").output();
    if found.is_err() {
        return Err(Error::Missing(
            "sbatch is not on this machine: expected Slurm; --dry-run prints the scripts".into(),
        ));
    }
    output::replace(&array_path, array.as_bytes())?;
    output::replace(&merge_path, merge.as_bytes())?;
    let first = sbatch(&array_path, None)?;
    let second = sbatch(&merge_path, Some(&first))?;
    session.note(&format!(
        "submitted: array {first} ({}), then {second} ({}) writes {}",
        array_path.display(),
        merge_path.display(),
        output.display()
    ));
    Ok(Exit::Done)
}

/// Submits a script, after the job `after` where there is one; returns the job's number.
fn sbatch(script: &Path, after: Option<&str>) -> Result<String, Error> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable");
    if let Some(after) = after {
        // Without the second option it would wait for ever where a shard fails.
        command.arg(format!("--dependency=afterok:{after}"));
        command.arg("--kill-on-invalid-dep=yes");
    }
    let ran = command
        .arg(script)
        .output()
        .map_err(|error: io::Error| Error::Missing(format!("sbatch: {error}")))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    // `number` or `number;cluster`.
    let number = said.trim().split(';').next().unwrap_or_default();
    if !ran.status.success() || number.is_empty() {
        let why = String::from_utf8_lossy(&ran.stderr);
        return Err(Error::Missing(format!(
            "sbatch refused the job: {}",
            why.trim()
        )));
    }
    Ok(number.to_owned())
}

fn kubernetes(parts: &Parts, image: &str, claim: &str) -> String {
    let Parts {
        program,
        file,
        output,
        shards,
        flags,
    } = parts;
    let pod = |name: &str, command: &str| {
        let lines: String = command
            .lines()
            .map(|line| format!("            {line}\n"))
            .collect();
        format!(
            "    spec:\n\
             \x20     restartPolicy: OnFailure\n\
             \x20     containers:\n\
             \x20     - name: {name}\n\
             \x20       image: {image}\n\
             \x20       workingDir: /work\n\
             \x20       command: [\"sh\", \"-c\"]\n\
             \x20       args:\n\
             \x20         - |\n\
             {lines}\
             \x20       volumeMounts:\n\
             \x20       - {{name: work, mountPath: /work}}\n\
             \x20     volumes:\n\
             \x20     - name: work\n\
             \x20       persistentVolumeClaim: {{claimName: {claim}}}\n"
        )
    };
    let shard = format!(
        "shard=$((JOB_COMPLETION_INDEX + 1))\n\
         exec {program} --quiet sweep {file} --shard \"$shard/{shards}\" --resume --output {output}.shard-\"$shard\"{flags}"
    );
    let merge = format!(
        "set --\n\
         for shard in $(seq 1 {shards}); do\n  \
           until [ -f {output}.shard-\"$shard\" ]; do sleep 5; done\n  \
           set -- \"$@\" {output}.shard-\"$shard\"\n\
         done\n\
         exec {program} --quiet merge \"$@\" --output {output}"
    );
    format!(
        "apiVersion: batch/v1\n\
         kind: Job\n\
         metadata:\n\
         \x20 name: moeplan-sweep\n\
         spec:\n\
         \x20 completionMode: Indexed\n\
         \x20 completions: {shards}\n\
         \x20 parallelism: {shards}\n\
         \x20 template:\n\
         {}---\n\
         apiVersion: batch/v1\n\
         kind: Job\n\
         metadata:\n\
         \x20 name: moeplan-merge\n\
         spec:\n\
         \x20 template:\n\
         {}",
        pod("shard", &shard),
        pod("merge", &merge),
    )
}
