//! Copying a whole tree, and going over it again when nothing changed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Bench,
    measure::{self, Cost, median},
    report::{Figure, Goal, Row, talk},
    tree::{self, Shape},
};

/// What is copied: about 170 MB.
pub(super) const TREE: Shape = Shape { accounts: 20, mailboxes: 10, messages: 100, octets: 8192 };

const RSYNC: &str = "rsync -a";
const RSYNC_FSYNC: &str = "rsync -a --fsync";
const FLOOR: &str = "copy + syncfs";
const OURS: &str = "mailtwin";

/// Who copies, and what it cost each time.
#[derive(Debug)]
struct Contender {
    name: &'static str,
    costs: Vec<Cost>,
    /// Where its latest copy is.
    latest: PathBuf,
}

impl Contender {
    fn new(name: &'static str) -> Self {
        Self { name, costs: Vec::new(), latest: PathBuf::new() }
    }

    fn wall(&self) -> Option<Figure> {
        let walls: Vec<_> = self.costs.iter().map(|cost| cost.wall).collect();
        median(&walls).map(Figure::Time)
    }

    fn cpu(&self) -> Option<Figure> {
        let cpus: Vec<_> = self.costs.iter().map(|cost| cost.cpu).collect();
        median(&cpus).map(Figure::Time)
    }
}

/// Measures initial copy and no-change pass.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let source = bench.image.path().join("source");
    talk(&format!("building {} messages", TREE.total()));
    tree::build(&source, TREE, &bench.samples)?;

    let mut names = vec![RSYNC, RSYNC_FSYNC, FLOOR];
    names.extend((!bench.peers_only).then_some(OURS));
    let mut contenders: Vec<_> = names.into_iter().map(Contender::new).collect();
    for run in 0..bench.runs {
        contenders.rotate_left(1); // Nobody always comes first.
        for contender in &mut contenders {
            contender.latest = bench.image.path().join(format!("{}-{run}/copy", contender.name));
            initial(bench, &source, contender)?;
        }
    }
    let mut rows = initial_rows(&contenders);

    contenders.retain(|contender| [RSYNC, OURS].contains(&contender.name));
    for contender in &mut contenders {
        contender.costs.clear();
    }
    for _ in 0..bench.runs {
        contenders.rotate_left(1);
        for contender in &mut contenders {
            prepare(bench, &source)?;
            let cost = replicate(bench, &source, contender)?;
            contender.costs.push(cost);
            say("no-change pass", contender.name, cost);
        }
    }
    rows.push(Row {
        what: "no-change pass, wall".into(),
        peers: figures(&contenders, Contender::wall),
        ours: ours(&contenders, Contender::wall),
        goals: vec![Goal::TimesAtMost(0.5, RSYNC)],
    });
    Ok(rows)
}

fn initial(bench: &Bench, source: &Path, contender: &mut Contender) -> Result<()> {
    let parent = contender.latest.parent().context("copies lie in a folder of their own")?;
    fs::create_dir_all(parent)?;
    prepare(bench, source)?;
    let cost = replicate(bench, source, contender)?;
    contender.costs.push(cost);
    say("initial copy", contender.name, cost);
    let messages = tree::compare(source, &contender.latest)
        .with_context(|| format!("check what {} copied", contender.name))?;
    ensure!(messages == TREE.total(), "the source has {messages} messages now");
    Ok(())
}

/// The same start for everybody: the source in the page cache, nothing left to write.
fn prepare(bench: &Bench, source: &Path) -> Result<()> {
    read_all(source)?;
    bench.image.settle()
}

/// Brings all of it into the page cache.
pub(super) fn read_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path())?;
        } else {
            std::io::copy(&mut File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

fn replicate(bench: &Bench, source: &Path, contender: &Contender) -> Result<Cost> {
    let copy = &contender.latest;
    let mut from = source.as_os_str().to_owned();
    from.push("/");
    let run = |program: &OsStr, words: &[&OsStr]| {
        measure::run(&bench.clock, Command::new(program).args(words), &bench.log)
    };
    match contender.name {
        RSYNC => run("rsync".as_ref(), &["-a".as_ref(), &from, copy.as_ref()]),
        RSYNC_FSYNC => {
            run("rsync".as_ref(), &["-a".as_ref(), "--fsync".as_ref(), &from, copy.as_ref()])
        }
        FLOOR => measure::time(&bench.clock, || tree::copy_and_sync(source, copy)),
        _ => {
            let words: [&OsStr; 4] =
                ["mirror".as_ref(), source.as_ref(), copy.as_ref(), "--once".as_ref()];
            run(bench.binaries.join("replctl").as_ref(), &words)
        }
    }
}

fn initial_rows(contenders: &[Contender]) -> Vec<Row> {
    let wall = Row {
        what: format!("initial copy, {} messages, wall", TREE.total()),
        peers: figures(contenders, Contender::wall),
        ours: ours(contenders, Contender::wall),
        goals: vec![Goal::TimesAtMost(1.0, RSYNC), Goal::TimesAtMost(0.15, RSYNC_FSYNC)],
    };
    let cpu = Row {
        what: "initial copy, CPU of both ends".into(),
        peers: figures(contenders, Contender::cpu),
        ours: ours(contenders, Contender::cpu),
        goals: vec![Goal::TimesAtMost(2.0, RSYNC)],
    };
    vec![wall, cpu]
}

type Pick = fn(&Contender) -> Option<Figure>;

fn figures(contenders: &[Contender], pick: Pick) -> Vec<(String, Figure)> {
    let order = [RSYNC, RSYNC_FSYNC, FLOOR];
    let find = |name| contenders.iter().find(|contender| contender.name == name);
    let peers = order.into_iter().filter_map(find);
    peers.filter_map(|peer| Some((peer.name.to_owned(), pick(peer)?))).collect()
}

fn ours(contenders: &[Contender], pick: Pick) -> Option<Figure> {
    contenders.iter().find(|contender| contender.name == OURS).and_then(pick)
}

fn say(what: &str, name: &str, cost: Cost) {
    let (wall, cpu) = (cost.wall.as_secs_f64(), cost.cpu.as_secs_f64());
    talk(&format!("{what}: {name}: {wall:.3} s wall, {cpu:.2} s CPU"));
}
