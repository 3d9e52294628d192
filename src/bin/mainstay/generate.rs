//! What is made from the command line and the table of config keys: schema, completions, manual pages.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use mainstay::config::schema::{self, KeyDescription};

use crate::error::CliError;
use crate::output::print;

#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell that reads them
    shell: Shell,
}

#[derive(Args)]
pub struct ManualArgs {
    /// Where the pages are written: mainstay.1, one for each command, and balancer.yaml.5
    #[arg(default_value = ".")]
    directory: PathBuf,
}

/// Prints the JSON Schema of the config.
pub fn schema() -> Result<(), CliError> {
    print(&format!("{:#}\n", schema::schema()))
}

/// Prints a script that completes the command line.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mainstay", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the manual pages.
pub fn manual(args: &ManualArgs, command: Command) -> Result<(), CliError> {
    let to = &args.directory;
    let written = clap_mangen::generate_to(command, to)
        .and_then(|()| std::fs::write(to.join("balancer.yaml.5"), config_page()));
    written.map_err(|error| named(to, &error).into())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// balancer.yaml(5).
fn config_page() -> String {
    let mut page = Roff::new();
    page.control("TH", ["balancer.yaml", "5", "", concat!("mainstay ", env!("CARGO_PKG_VERSION"))]);
    page.control("SH", ["NAME"]).text([roman("balancer.yaml - the config of mainstay(1)")]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in ABOUT {
        page.control("PP", []).text([roman(*paragraph)]);
    }
    page.control("SH", ["KEYS"]);
    for entry in schema::entries() {
        page.control("TP", []).text(heading(&entry)).text([roman(entry.says)]);
    }
    page.control("SH", ["SEE ALSO"]).text([
        bold("mainstay-check"),
        roman("(1), "),
        bold("mainstay"),
        roman("(1)"),
    ]);
    page.render()
}

const ABOUT: &[&str] = &[
    "YAML 1.2. Only `pools` with their `nodes` have to be there; a key that is left out has the value that is shown here. \
     An unknown key is a fault, and `mainstay check` says every fault at once, with its place.",
    "Durations are a number and a unit (500ms, 2s, 5m, 1h30m), sizes as well (512B, 16KiB, 1MiB). ${NAME} and \
     ${NAME:-default} inside a value come from the environment; $${ is a literal ${. Anchors, aliases and << work. \
     Relative paths count from the directory of the file.",
    "In the names below, [] stands for each item of a list, and NAME for a name of your own.",
];

fn heading(entry: &KeyDescription) -> Vec<Inline> {
    let mut line = vec![bold(&entry.path), roman(" "), italic(&entry.form)];
    if entry.is_required {
        line.push(roman(", required"));
    }
    if let Some(default) = &entry.default {
        line.extend([roman(", default "), roman(default)]);
    }
    line
}
