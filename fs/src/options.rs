//! Owns the command line: what it can say, and what of it makes sense. Never opens anything.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config_space::TAG_LEN;
use crate::sandbox::Sandbox;
use crate::share::CachePolicyOption;

/// Linux maps files into the window in pieces of this size, in bytes.
const GRANULE: u64 = 2 << 20;

/// What is served, to whom, and how.
///
/// Sizes are in bytes. The fields are what the command line says; [`serve`](crate::serve) looks at
/// the files they name.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Listen on this path for the one frontend that is served. The path is gone once the frontend
    /// has connected, and when the daemon ends
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "fd",
        conflicts_with = "fd"
    )]
    pub socket: Option<PathBuf>,

    /// Listen on this inherited descriptor of a listening socket instead
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,

    /// The directory to share
    #[arg(long, value_name = "DIR")]
    pub source: PathBuf,

    /// The name that the guest mounts, of 1 to 36 bytes
    #[arg(long, value_name = "NAME", default_value = "share", value_parser = tag)]
    pub tag: String,

    /// The size of the DAX window, a multiple of 2 MiB: how much of all files is mapped into the
    /// guest at a time
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = window)]
    pub window: u64,

    /// Let the guest change nothing
    #[arg(long)]
    pub readonly: bool,

    /// For how long the guest may rely on what it was told
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = CachePolicyOption::Auto)]
    pub cache: CachePolicyOption,

    /// How many request queues there are, each with a thread of its own. Linux uses more than one
    /// since 6.11
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub threads: u32,

    /// How the daemon is kept inside the directory
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Sandbox::Auto)]
    pub sandbox: Sandbox,
}

impl Options {
    /// The command line that says the same, without the name of the command: for who starts the
    /// daemon as a child.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        // One word each: a value may begin as a flag does.
        let mut say = |name: &str, value: OsString| {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            arguments.push(word);
        };
        if let Some(path) = &self.socket {
            say("--socket", path.into());
        }
        if let Some(fd) = self.fd {
            say("--fd", fd.to_string().into());
        }
        say("--source", self.source.clone().into());
        say("--tag", self.tag.clone().into());
        say("--window", self.window.to_string().into());
        say("--cache", named(&self.cache));
        say("--threads", self.threads.to_string().into());
        say("--sandbox", named(&self.sandbox));
        if self.readonly {
            arguments.push("--readonly".into());
        }
        arguments
    }
}

fn named(value: &impl clap::ValueEnum) -> OsString {
    value
        .to_possible_value()
        .map_or_else(OsString::new, |value| value.get_name().into())
}

fn tag(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("the guest mounts by it, so it needs 1 to 36 bytes".to_owned()),
        len if len > TAG_LEN => Err(format!(
            "{len} bytes are too long: virtio-fs has room for 36"
        )),
        _ if text.contains('\0') => Err("a zero byte would end it".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn window(text: &str) -> Result<u64, String> {
    let bytes = parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{error}; say for example 512M or 4G"))?;
    if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
        return Err(format!(
            "{bytes} bytes are no multiple of 2 MiB, which Linux maps at a time; say for example 512M"
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &str) -> Result<Options, String> {
        let words = std::iter::once("vm-remap-fs").chain(arguments.split_whitespace());
        Command::try_parse_from(words)
            .map(|command| command.options)
            .map_err(|error| error.to_string())
    }

    fn refusal(arguments: &str) -> String {
        parse(arguments).unwrap_err()
    }

    #[test]
    fn a_socket_and_a_directory_are_enough() {
        let options = parse("--socket a --source .").unwrap();
        assert_eq!(options.tag, "share");
        assert_eq!(options.window, 1 << 30);
        assert_eq!(options.threads, 1);
        assert!(!options.readonly);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_do() {
        let long = "t".repeat(37);
        for (arguments, says) in [
            ("--source .".to_owned(), "--socket"),
            (
                "--socket a --fd 3 --source .".to_owned(),
                "cannot be used with",
            ),
            (
                format!("--socket a --source . --tag {long}"),
                "37 bytes are too long",
            ),
            ("--socket a --source . --tag=".to_owned(), "1 to 36 bytes"),
            (
                "--socket a --source . --window 3M".to_owned(),
                "no multiple of 2 MiB",
            ),
            (
                "--socket a --source . --window 0".to_owned(),
                "no multiple of 2 MiB",
            ),
            ("--socket a --source . --window x".to_owned(), "512M or 4G"),
            ("--socket a --source . --threads 0".to_owned(), "1..=16"),
            ("--fd=-1 --source .".to_owned(), "0.."),
        ] {
            let said = refusal(&arguments);
            assert!(said.contains(says), "{arguments}: {said}");
        }
    }

    #[test]
    fn a_child_shares_a_directory_whose_name_is_no_text() {
        let mut options = parse("--fd 0 --source /srv").unwrap();
        options.source = PathBuf::from(OsString::from_vec(b"/srv/\xff -x".to_vec()));
        let words = options.to_arguments().into_iter();
        let child = Command::try_parse_from(std::iter::once("fs".into()).chain(words));
        assert_eq!(child.unwrap().options.source, options.source);
    }

    #[test]
    fn a_child_is_told_the_same() {
        for arguments in [
            "--fd 7 --source /srv --tag home --window 4M --readonly --cache never --threads 2",
            "--socket /run/a --source /srv --sandbox landlock",
            "--fd 0 --source=-srv --tag=--window",
            "--fd 0 --source==srv, --tag=a=b,\"c\"",
        ] {
            let options = parse(arguments).unwrap();
            let words = options.to_arguments().into_iter();
            let child = Command::try_parse_from(std::iter::once("fs".into()).chain(words));
            assert_eq!(
                format!("{:?}", child.unwrap().options),
                format!("{options:?}")
            );
        }
    }
}
