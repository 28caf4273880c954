//! The price list in force, read.

use crate::document::Document;
use crate::error::{Error, Place};
use crate::play::Run;
use crate::settings::EconomySettings;
use moeplan_sim::economy::{Activity, Cost, Price, PriceKind, PriceList};
use moeplan_sim::spec::ResolvedLayer;

/// A price list, and the kind of price in it that is paid.
#[derive(Debug, Clone)]
pub struct Prices {
    list: PriceList,
    kind: PriceKind,
    /// The list as the user named it.
    name: String,
}

impl Prices {
    /// Reads the list that `settings` name.
    ///
    /// # Errors
    /// A list that cannot be used.
    pub fn read(settings: &EconomySettings) -> Result<Prices, Error> {
        let kind = settings.price.unwrap_or_default();
        let Some(path) = &settings.price_list else {
            let list = PriceList::default();
            let name = list.name.clone();
            return Ok(Prices { list, kind, name });
        };
        let document = Document::read(path)?;
        let list: PriceList = document.parse()?;
        list.check()
            .map_err(|error| document.mistake(&error.field, None, &error.message))?;
        Ok(Prices {
            list,
            kind,
            name: document.name,
        })
    }

    /// What a GPU of `cluster` costs.
    ///
    /// # Errors
    /// A list without such a price.
    pub fn of(&self, cluster: &str) -> Result<&Price, Error> {
        self.list.price(cluster, self.kind).map_err(|error| {
            let place = Place {
                file: Some(self.name.clone()),
                line: None,
                field: Some(error.field),
            };
            Error::input(place, error.message)
        })
    }

    /// The list's currency.
    pub fn currency(&self) -> &str {
        &self.list.currency
    }

    /// The list.
    pub fn list(&self) -> &PriceList {
        &self.list
    }

    /// How GPUs are paid for.
    pub fn kind(&self) -> PriceKind {
        self.kind
    }

    /// What the steps of `run`, of `layer` on GPUs of `cluster`, cost.
    ///
    /// # Errors
    /// A list without such a price.
    pub fn of_run(&self, cluster: &str, layer: &ResolvedLayer, run: &Run) -> Result<Cost, Error> {
        let activity = Activity::mean(run.steps.iter().map(|played| &played.decided.step));
        let price = self.of(cluster)?.per_gpu_hour;
        let (gpus, tokens) = (layer.world_size, layer.tokens());
        Ok(Cost::new(gpus, tokens, &activity, price, &self.list.power))
    }
}
