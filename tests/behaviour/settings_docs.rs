//! What people read names every setting, with its default.

use aegis_ingest::config::SETTINGS;

use crate::support::servers::repository;

fn read(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Whether the text holds the name itself and not only a longer one.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| !text[at + name.len()..].starts_with(|c: char| c.is_ascii_uppercase() || c == '_'))
}

#[test]
fn every_setting_stands_in_the_readme() {
    let text = read("README.md");
    let missing: Vec<_> = SETTINGS.iter().map(|setting| setting.name).filter(|name| !names(&text, name)).collect();
    assert!(missing.is_empty(), "README.md lacks {missing:?}");
}

/// One line `NAME=default` or `#NAME=default` a setting, in a file that the program itself can read.
#[test]
fn every_setting_stands_in_the_example_with_its_default() {
    let text = read(".env.example");
    let mut wrong = Vec::new();
    for setting in SETTINGS {
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix(setting.name)?.strip_prefix('='))
            .collect();
        let default = setting.default.unwrap_or_default();
        match lines.as_slice() {
            [value] if value.trim_matches(['\'', '"']) == default => {}
            [] => wrong.push(format!("{} is missing", setting.name)),
            [value] => wrong.push(format!("{} is {value:?}, its default {default:?}", setting.name)),
            _ => wrong.push(format!("{} stands there {} times", setting.name, lines.len())),
        }
    }
    assert!(wrong.is_empty(), ".env.example:\n{}", wrong.join("\n"));
}

#[test]
fn the_documents_name_no_setting_that_does_not_exist() {
    for file in ["README.md", ".env.example"] {
        let text = read(file);
        let mut rest = text.as_str();
        while let Some(at) = rest.find("AEGIS_") {
            let name: String =
                rest[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_' || c.is_ascii_digit()).collect();
            rest = &rest[at + name.len()..];
            let secret = name.strip_suffix("_FILE");
            let known = SETTINGS.iter().any(|setting| setting.name == name || (setting.secret && Some(setting.name) == secret));
            // Variables of make and of the tests, and a group of settings written AEGIS_….
            let other = name == "AEGIS_"
                || name.ends_with('_')
                || ["AEGIS_STACK_DIR", "AEGIS_DEBIAN_MIRROR", "AEGIS_TEST_SEED"].contains(&name.as_str());
            assert!(known || other, "{file} names {name}, which is no setting");
        }
    }
}
