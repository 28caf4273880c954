//! What a command may use of the world outside: streams, threads, the clock, interruption.

use crate::error::{Error, Place};
use crate::settings::OutputSettings;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Set by the first Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The streams of a run.
pub struct Streams<'a> {
    /// Results.
    pub stdout: &'a mut dyn Write,
    /// Everything else.
    pub stderr: &'a mut dyn Write,
    /// Whether a person watches standard error.
    pub watched: bool,
}

/// One run of the program.
pub struct Session<'a> {
    /// Its streams.
    pub streams: Streams<'a>,
    /// Output settings in force.
    pub output: OutputSettings,
    threads: Option<rayon::ThreadPool>,
}

impl<'a> Session<'a> {
    /// A session on `streams`.
    ///
    /// # Errors
    /// Threads that cannot be had.
    pub fn new(streams: Streams<'a>, output: OutputSettings) -> Result<Session<'a>, Error> {
        if let Some(threads) = output
            .threads
            .filter(|threads| !(1..=1024).contains(threads))
        {
            let message = format!("expected 1 to 1024, found {threads}");
            return Err(Error::input(Place::flag("--threads"), message));
        }
        let threads = output.threads.map(|threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(|error| Error::Unexpected(format!("{threads} threads: {error}")))
        });
        Ok(Session {
            streams,
            output,
            threads: threads.transpose()?,
        })
    }

    /// Runs `work` on the threads asked for.
    ///
    /// # Errors
    /// None of its own.
    pub fn on_threads<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        Ok(match &self.threads {
            Some(threads) => threads.install(work),
            None => work(),
        })
    }

    /// A bar on standard error where a person watches a run of several steps.
    pub fn progress(&self, steps: u64) -> ProgressBar {
        if !self.streams.watched || self.output.quiet || steps < 2 {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} step {pos} of {len}, {eta} left")
        {
            bar.set_style(style);
        }
        bar
    }

    /// Now, for `--timings` only: no result depends on it.
    pub fn clock(&self) -> Instant {
        Instant::now()
    }

    /// A line on standard error, unless quiet. What cannot be shown there is dropped.
    pub fn note(&mut self, line: &str) {
        if !self.output.quiet {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(self.streams.stderr, "{line}");
        }
    }

    /// Whether the user asked to stop.
    pub fn is_interrupted(&self) -> bool {
        is_interrupted()
    }
}

/// Whether this process was asked to stop.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Asks the run to stop after the step at hand; returns whether that was asked before.
pub fn interrupt() -> bool {
    INTERRUPTED.swap(true, Ordering::Relaxed)
}
