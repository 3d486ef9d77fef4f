//! Settings as text, before they are judged: flags, the environment and `.env`, in this order, and files that hold a secret.

use std::collections::HashMap;
use std::path::Path;

use super::settings;

/// A setting that cannot be used: one line for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {was}: {wanted}")]
pub struct Bad {
    /// The variable as the environment spells it.
    pub variable: String,
    /// What it was; a secret is not shown.
    pub was: String,
    /// What would do.
    pub wanted: String,
}

/// Settings as text, before they are judged: what was given, by variable name.
#[derive(Clone, Default)]
pub struct Given(HashMap<String, String>);

impl Given {
    /// Reads the process environment, then `.env` of the working directory for what the environment leaves unset.
    pub fn from_environment() -> Result<Self, Bad> {
        let mut given = HashMap::new();
        match dotenvy::from_path_iter(Path::new(".env")) {
            Ok(lines) => {
                for line in lines {
                    let (name, value) = line.map_err(|_| Bad {
                        variable: ".env".to_owned(),
                        was: "not readable as NAME=value lines".to_owned(),
                        wanted: "quote values that hold spaces or '#', one variable a line".to_owned(),
                    })?;
                    given.insert(name, value);
                }
            }
            Err(error) if error.not_found() => {}
            Err(_) => {
                return Err(Bad {
                    variable: ".env".to_owned(),
                    was: "not readable".to_owned(),
                    wanted: "let this user read it, or remove it".to_owned(),
                });
            }
        }
        // Empty variables must not hide a value of `.env`: an empty setting counts as unset.
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.into_string().ok().filter(|name| name.starts_with("AEGIS_")) else { continue };
            let value = value.into_string().map_err(|_| Bad {
                variable: name.clone(),
                was: "not valid UTF-8".to_owned(),
                wanted: "write it in UTF-8".to_owned(),
            })?;
            if !value.is_empty() {
                given.insert(name, value);
            }
        }
        Ok(Self(given))
    }

    /// Settings out of pairs, for tests and for embedding.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Lets a flag win over what was given before.
    pub fn set(&mut self, variable: &str, value: String) {
        // `--redis-url` must also win over AEGIS_REDIS_URL_FILE.
        self.0.remove(&format!("{variable}_FILE"));
        self.0.insert(variable.to_owned(), value);
    }

    pub(super) fn unknown(&self) -> Vec<String> {
        let mut unknown: Vec<_> = (self.0.keys())
            .filter(|name| name.starts_with("AEGIS_") && !settings::knows(name))
            .map(|name| match settings::nearest(name) {
                Some(near) => format!("{name} is not a setting; did you mean {near}?"),
                None => format!("{name} is not a setting"),
            })
            .collect();
        unknown.sort_unstable();
        unknown
    }

    pub(super) fn text(&self, variable: &str) -> Result<Option<String>, Bad> {
        let plain = self.0.get(variable).filter(|value| !value.is_empty());
        let file_variable = format!("{variable}_FILE");
        let file = self.0.get(&file_variable).filter(|value| !value.is_empty() && settings::find(variable).secret);
        match (plain, file) {
            (Some(_), Some(_)) => Err(Bad {
                variable: file_variable,
                was: format!("set beside {variable}"),
                wanted: "set one of the two".to_owned(),
            }),
            (Some(value), None) => Ok(Some(value.clone())),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()).filter(|text| !text.is_empty())),
                Err(error) => Err(Bad {
                    variable: file_variable,
                    was: format!("{path:?}, which cannot be read ({})", error.kind()),
                    wanted: format!("name a file that this user can read and that holds {variable}"),
                }),
            },
            (None, None) => Ok(settings::find(variable).default.map(str::to_owned)),
        }
    }

    pub(super) fn parse<T>(&self, variable: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Bad> {
        let value = self.text(variable)?.unwrap_or_default();
        parse(&value).map_err(|wanted| Bad {
            variable: variable.to_owned(),
            was: if settings::find(variable).secret {
                "not usable (its value is not shown)".to_owned()
            } else {
                format!("{value:?}")
            },
            wanted: format!("expected {wanted}"),
        })
    }
}
