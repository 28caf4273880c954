//! The real binary on a pseudo-terminal: it shows a run, takes every key, and gives the terminal back.
//!
//! Here, not among `tests/it`, as Cargo names the binary only to tests of its own package.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use portable_pty::{CommandBuilder, MasterPty, PtySize, native_pty_system};
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_moeplan");
const RUN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/small.moeplan"
);
/// Enters and leaves the screen of full-screen programs.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
/// Far longer than anything takes; no test passes by being fast.
const PATIENCE: Duration = Duration::from_secs(120);

/// A dashboard on a pseudo-terminal.
struct Screen {
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn portable_pty::Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    seen: Arc<Mutex<String>>,
    before: u64,
    folder: tempfile::TempDir,
}

impl Screen {
    fn open(args: &[&str]) -> Screen {
        let size = PtySize {
            rows: 24,
            cols: 80,
            pixel_width: 0,
            pixel_height: 0,
        };
        let pair = native_pty_system().openpty(size).unwrap();
        let before = modes(&*pair.master);
        let folder = tempfile::tempdir().unwrap();
        let mut command = CommandBuilder::new(BINARY);
        command.args(args);
        command.cwd(folder.path());
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).unwrap();
        let mut output = pair.master.try_clone_reader().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let known = seen.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                known.lock().unwrap().push_str(&text);
            }
        });
        let keys = pair.master.take_writer().unwrap();
        Screen {
            master: pair.master,
            child,
            keys,
            seen,
            before,
            folder,
        }
    }

    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `found` of what was written since it had `from` bytes.
    fn wait(&self, from: usize, what: &str) {
        let clock = Instant::now();
        while !self
            .seen()
            .get(from..)
            .is_some_and(|new| new.contains(what))
        {
            assert!(
                clock.elapsed() < PATIENCE,
                "{what:?} not seen in {:?}",
                self.seen()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `what` is on the screen. What did not change is not written again, so the size is
    /// changed until it is: then all is.
    fn wait_on_screen(&self, what: &str) {
        let clock = Instant::now();
        let mut cols = 110;
        loop {
            assert!(
                clock.elapsed() < PATIENCE,
                "{what:?} not seen in {:?}",
                self.seen()
            );
            let from = self.seen().len();
            self.resize(24, cols);
            cols = if cols == 110 { 111 } else { 110 };
            thread::sleep(Duration::from_millis(300));
            if self
                .seen()
                .get(from..)
                .is_some_and(|new| new.contains(what))
            {
                return;
            }
        }
    }

    fn resize(&self, rows: u16, cols: u16) {
        let size = PtySize {
            rows,
            cols,
            pixel_width: 0,
            pixel_height: 0,
        };
        self.master.resize(size).unwrap();
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for the end; returns the exit code.
    fn end(&mut self) -> u32 {
        let clock = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(
                clock.elapsed() < PATIENCE,
                "still running: {:?}",
                self.seen()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The screen was left, the cursor is back, and the terminal echoes lines again.
    fn is_given_back(&self) {
        self.wait(0, LEAVE);
        let seen = self.seen();
        assert!(seen.rfind(LEAVE) > seen.rfind(ENTER));
        assert!(
            seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l"),
            "the cursor is hidden"
        );
        assert_eq!(
            modes(&*self.master),
            self.before,
            "modes of the terminal differ"
        );
    }
}

/// Modes of the terminal: line editing, echo, signals.
fn modes(master: &dyn MasterPty) -> u64 {
    let modes = master.get_termios().expect("a terminal");
    u64::from(modes.local_flags.bits()) << 32 | u64::from(modes.input_flags.bits())
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn every_key_and_size_then_the_terminal_is_given_back() {
    let mut screen = Screen::open(&["dash", RUN]);
    screen.wait(0, ENTER);
    screen.wait(0, "this step");
    assert_ne!(
        modes(&*screen.master),
        screen.before,
        "keys come one by one"
    );
    // All printable keys but q and those that end a filter; then arrows, tab, enter, escape.
    let keys: String = (' '..='~').filter(|key| !"q/s".contains(*key)).collect();
    screen.press(&keys);
    for view in '1'..='8' {
        screen.press(&view.to_string());
        screen.press("\x1b[A\x1b[B\x1b[C\x1b[D\t\x1b[Z\r");
        thread::sleep(Duration::from_millis(30));
        screen.press("\x1b");
    }
    screen.press("/expert\r");
    // A wheel and a click, as xterm sends them.
    screen.press("\x1b[<64;40;12M\x1b[<0;15;1M\x1b[<0;15;1m");
    for (rows, cols) in [(50, 200), (8, 30), (80, 300), (24, 80)] {
        let from = screen.seen().len();
        screen.resize(rows, cols);
        let shown = if rows < 24 { "too small" } else { "keys" };
        screen.wait(from, shown);
    }
    screen.press("1s");
    screen.wait_on_screen("saved moeplan-overview.svg");
    let saved = |name: &str| std::fs::read_to_string(screen.folder.path().join(name)).unwrap();
    assert!(saved("moeplan-overview.svg").starts_with("<svg"));
    assert!(saved("moeplan-overview.txt").contains("this step"));
    screen.press("q");
    assert_eq!(screen.end(), 0);
    screen.is_given_back();
}

#[test]
fn sigterm_gives_the_terminal_back() {
    let mut screen = Screen::open(&["dash", RUN]);
    screen.wait(0, "this step");
    signal(screen.child.process_id().unwrap(), "-TERM");
    assert_eq!(screen.end(), 130);
    screen.is_given_back();
}

#[test]
fn a_run_of_its_own_is_shown_and_recorded() {
    let small =
        "--gpus 16 --tokens-per-step 512 --model-dim 256 --hidden-dim 256 --trace digits --steps 4";
    let args = format!("dash {small} --record run.moeplan");
    let mut screen = Screen::open(&args.split(' ').collect::<Vec<_>>());
    screen.wait_on_screen("complete");
    screen.press("5");
    screen.wait_on_screen("alike on all GPUs");
    screen.press("q");
    assert_eq!(screen.end(), 0);
    screen.is_given_back();
    let file = std::fs::read(screen.folder.path().join("run.moeplan")).unwrap();
    assert!(file.starts_with(b"MOEPLAN"));
}

#[test]
fn a_file_that_is_no_run_is_told_before_the_screen_changes() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut screen = Screen::open(&["dash", file]);
    assert_eq!(screen.end(), 2);
    screen.wait(0, "expected a run file");
    assert!(!screen.seen().contains(ENTER));
}

#[test]
fn a_run_that_is_killed_leaves_a_file_that_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.moeplan");
    // Long enough to be killed in the middle.
    let args = "compare --gpus 64 --tokens-per-step 2048 --padding dropless --routing zipf:1.2,drift=0.1 \
                --steps 100000 --quiet --record";
    let mut child = Command::new(BINARY)
        .args(args.split_whitespace())
        .arg(&path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let clock = Instant::now();
    let steps = |path: &std::path::Path| {
        let mut run = moeplan::dash::recording::Recording::default();
        if let Ok(mut reader) = moeplan::run_file::Reader::open(path) {
            for block in reader.blocks().unwrap() {
                run.push(block).unwrap();
            }
        }
        (run.steps.len(), run.end)
    };
    while steps(&path).0 < 3 {
        assert!(clock.elapsed() < PATIENCE, "no steps");
        thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (known, end) = steps(&path);
    assert!(known >= 3 && end.is_none());
    // And the dashboard shows it.
    let shown = Command::new(BINARY)
        .args(["dash", "--screenshot", "overview"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
}
