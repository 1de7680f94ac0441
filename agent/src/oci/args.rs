//! Command lines as runc takes them: `--flag value`, `--flag=value`, one dash or two, and flags also behind the other words.

/// A flag of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// Without dashes; the first is the one that it is asked for by.
    pub(super) names: &'static [&'static str],
    /// Whether a value follows.
    pub(super) takes_value: bool,
}

/// A flag with a value.
pub(super) const fn value(names: &'static [&'static str]) -> Flag {
    Flag { names, takes_value: true }
}

/// A flag that is there or not.
pub(super) const fn switch(names: &'static [&'static str]) -> Flag {
    Flag { names, takes_value: false }
}

/// Where the other words begin to be nobody's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    /// All before the first word that is none.
    InFront,
    /// Wherever they are.
    Anywhere,
}

/// What a command line says.
#[derive(Debug, Default)]
pub(super) struct Words {
    flags: Vec<(&'static str, String)>,
    /// What is no flag.
    pub(super) rest: Vec<String>,
}

impl Words {
    /// Takes a command line apart.
    ///
    /// # Errors
    /// A flag that there is none of, or without its value.
    pub(super) fn parse(words: &[String], known: &[Flag], flags: Flags) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let Some(name) = name.filter(|name| !name.is_empty()) else {
                if word == "--" {
                    break;
                }
                parsed.rest.push(word.clone());
                if flags == Flags::InFront {
                    break;
                }
                continue;
            };
            let (name, given) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            let found = known.iter().find(|flag| flag.names.contains(&name));
            let Some(flag) = found else { return Err(format!("flag provided but not defined: -{name}")) };
            let value = match (flag.takes_value, given) {
                (true, Some(value)) => value.to_owned(),
                (true, None) => words.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
                (false, None | Some("true" | "1")) => "true".to_owned(),
                (false, Some("false" | "0")) => continue,
                (false, Some(other)) => return Err(format!("invalid boolean value {other:?} for -{name}")),
            };
            if let Some(name) = flag.names.first() {
                parsed.flags.push((name, value));
            }
        }
        parsed.rest.extend(words.cloned());
        Ok(parsed)
    }

    /// Whether a switch is on.
    pub(super) fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(known, _)| *known == name)
    }

    /// The last value of a flag.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a flag.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A flag's value as a number.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let parse = |value: &str| {
            value.parse().map_err(|_| format!("invalid value {value:?} for flag -{name}: it has to be a number"))
        };
        self.value(name).map(parse).transpose()
    }

    /// The only other word.
    ///
    /// # Errors
    /// There is none, or more.
    pub(super) fn only(&self, command: &str) -> Result<&str, String> {
        match self.rest.as_slice() {
            [id] => Ok(id),
            words => Err(format!("{command}: {} arguments, and the container's id is the only one", words.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Flag] = &[value(&["bundle", "b"]), switch(&["force", "f"])];

    fn parse(words: &[&str], flags: Flags) -> Result<Words, String> {
        Words::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), KNOWN, flags)
    }

    #[test]
    fn flags_are_anywhere_or_in_front() {
        for words in
            [&["-b", "/x", "--force", "id"][..], &["id", "--bundle=/x", "-f"], &["-force=true", "id", "--b=/x"]]
        {
            let parsed = parse(words, Flags::Anywhere).unwrap();
            assert_eq!((parsed.only("x"), parsed.value("bundle"), parsed.has("force")), (Ok("id"), Some("/x"), true));
        }
        let parsed = parse(&["-f", "id", "sh", "-c", "--force"], Flags::InFront).unwrap();
        assert_eq!(parsed.rest, ["id", "sh", "-c", "--force"]);
        assert_eq!(parse(&["--", "-f"], Flags::Anywhere).unwrap().rest, ["-f"]);
        assert!(!parse(&["--force=false", "id"], Flags::Anywhere).unwrap().has("force"));
    }

    #[test]
    fn what_is_no_flag_is_said() {
        let error = |words: &[&str]| parse(words, Flags::Anywhere).unwrap_err();
        assert_eq!(error(&["--nosuch"]), "flag provided but not defined: -nosuch");
        assert_eq!(error(&["-b"]), "flag needs an argument: -b");
        assert!(error(&["--force=perhaps"]).contains("invalid boolean value"));
        let parsed = parse(&["-b", "x"], Flags::Anywhere).unwrap();
        assert!(parsed.number::<u32>("bundle").unwrap_err().contains("has to be a number"));
        assert!(parsed.only("kill").unwrap_err().contains("0 arguments"));
    }
}
