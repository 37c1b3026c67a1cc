//! `gabion settings`.

use crate::cli::SettingsVerb;
use crate::failure::{Exit, Failure};
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::view;
use serde_json::{Value, json};

pub fn run(remote: &Remote, verb: &SettingsVerb, as_json: bool) -> Result<(), Failure> {
    match verb {
        SettingsVerb::List => list(remote, as_json),
        SettingsVerb::Get { name } => get(remote, name, as_json),
        SettingsVerb::Set { name, value } => {
            remote.set_setting(name, value)?;
            show(as_json, &json!({ "name": name, "value": value }), || {
                format!("{name} is {value} on all nodes")
            });
            Ok(())
        }
    }
}

fn list(remote: &Remote, as_json: bool) -> Result<(), Failure> {
    let settings = remote.settings()?;
    let shown: Vec<Value> = settings.iter().map(view::setting).collect();
    show(as_json, &json!({ "settings": shown }), || {
        let rows: Vec<Vec<String>> = settings
            .iter()
            .map(|setting| {
                vec![
                    setting.name.clone(),
                    setting.value.clone(),
                    setting.default_value.clone(),
                    setting.help.clone(),
                ]
            })
            .collect();
        view::table(&["SETTING", "VALUE", "DEFAULT", "WHAT IT DOES"], &rows)
    });
    Ok(())
}

fn get(remote: &Remote, name: &str, as_json: bool) -> Result<(), Failure> {
    let settings = remote.settings()?;
    let setting = settings.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let what = format!("there is no setting {name}");
        Failure::new(Exit::NotFound, what, "see `gabion settings list`")
    })?;
    show(as_json, &view::setting(setting), || setting.value.clone());
    Ok(())
}
