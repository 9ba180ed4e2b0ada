"""Export: a trained student in the forms that other programs load, each checked."""

from kdcache.export.card import model_card
from kdcache.export.formats import FORMATS
from kdcache.export.hub import HubModel, open_hub_model
from kdcache.export.run import Exported, run_export

__all__ = ["FORMATS", "Exported", "HubModel", "model_card", "open_hub_model", "run_export"]
