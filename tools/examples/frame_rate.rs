//! Frames a second, processor and memory of the dashboard, and how soon what-if answers: while a run
//! plays, at rest, and after changes of a setting.
//!
//! ```sh
//! moeplan compare --gpus 2048 --trace digits --steps 16 --record short.moeplan
//! cargo run --release --example long_run -- short.moeplan long.moeplan 10000
//! cargo run --release --example frame_rate -- target/release/moeplan long.moeplan
//! ```

#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use anyhow::{Context, Result, bail};
use portable_pty::{Child, CommandBuilder, PtySize, native_pty_system};
use std::fs;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const SIZE: PtySize = PtySize {
    rows: 50,
    cols: 200,
    pixel_width: 0,
    pixel_height: 0,
};

/// Output that comes closer together than this is one frame.
const FRAME: Duration = Duration::from_millis(4);

/// Long enough for any answer.
const ANSWER: Duration = Duration::from_secs(1);

const VIEWS: [(&str, &str); 5] = [
    ("1", "overview"),
    ("2", "experts"),
    ("3", "timeline"),
    ("4", "network"),
    ("5", "cluster"),
];

struct Dashboard {
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    output: Receiver<Instant>,
}

impl Dashboard {
    fn open(binary: &str, run: &str, options: &[&str]) -> Result<Dashboard> {
        let pair = native_pty_system().openpty(SIZE)?;
        let mut command = CommandBuilder::new(binary);
        command.args(["dash", run]);
        command.args(options);
        command.env("TERM", "xterm-256color");
        command.cwd(std::env::current_dir()?);
        let child = pair.slave.spawn_command(command)?;
        let mut reader = pair.master.try_clone_reader()?;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 1 << 16];
            while let Ok(1..) = reader.read(&mut bytes) {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        let keys = pair.master.take_writer()?;
        // The terminal lives as long as the program that measures.
        std::mem::forget(pair.master);
        let dashboard = Dashboard {
            child,
            keys,
            output,
        };
        dashboard.watch(Duration::from_secs(2));
        Ok(dashboard)
    }

    fn close(mut self) -> Result<()> {
        self.press("q")?;
        self.child.wait()?;
        Ok(())
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// When output came, until `time` is over.
    fn watch(&self, time: Duration) -> Vec<Instant> {
        let end = Instant::now() + time;
        let mut seen = Vec::new();
        while let Ok(at) = self
            .output
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            seen.push(at);
        }
        seen
    }

    fn process_file(&self, name: &str) -> Result<String> {
        let id = self.child.process_id().context("a process that ended")?;
        fs::read_to_string(format!("/proc/{id}/{name}")).context("this needs Linux")
    }

    /// Time on a processor so far.
    fn cpu(&self) -> Result<Duration> {
        let mut all = 0;
        let id = self.child.process_id().context("a process that ended")?;
        for thread in fs::read_dir(format!("/proc/{id}/task")).context("this needs Linux")? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            all += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(Duration::from_nanos(all))
    }

    fn peak_memory_mib(&self) -> Result<u64> {
        let status = self.process_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no VmHWM")?.parse::<u64>()? / 1024)
    }

    fn report(&self, what: &str, time: Duration) -> Result<()> {
        let before = self.cpu()?;
        let seen = self.watch(time);
        let used = self.cpu()? - before;
        let apart = seen
            .windows(2)
            .filter(|two| two[1] - two[0] > FRAME)
            .count();
        let frames = apart + usize::from(!seen.is_empty());
        println!(
            "{what:<20} {:5.1} frames/s  {:4.1} % of a core  {:4} MiB at most",
            frames as f64 / time.as_secs_f64(),
            100.0 * used.as_secs_f64() / time.as_secs_f64(),
            self.peak_memory_mib()?,
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [binary, run] = args.as_slice() else {
        bail!("expected BINARY RUN");
    };
    for (state, options) in [("playing", ["--speed", "30"].as_slice()), ("idle", &[])] {
        let mut dashboard = Dashboard::open(binary, run, options)?;
        for (key, view) in VIEWS {
            dashboard.press(key)?;
            dashboard.watch(Duration::from_millis(500));
            dashboard.report(&format!("{state}, {view}"), Duration::from_secs(4))?;
        }
        dashboard.close()?;
    }
    let mut dashboard = Dashboard::open(binary, run, &[])?;
    dashboard.press("8")?;
    dashboard.watch(ANSWER);
    for change in ["l", "l", "jl", "l", "jl", "jl", "jl"] {
        let pressed = Instant::now();
        dashboard.press(change)?;
        let last = dashboard.watch(ANSWER).last().copied();
        println!(
            "what-if, keys {change:<3} answered after {:3} ms",
            (last.context("no answer")? - pressed).as_millis()
        );
    }
    dashboard.close()
}
