"""Plans: the size of a cache, the hours of its extraction, and when it pays, before any of it."""

from kdcache.plan.forecast import Epochs, Forecast, Machines, forecast_epochs, forecast_extraction
from kdcache.plan.measure import measure
from kdcache.plan.question import Question
from kdcache.plan.rates import Rates, check_about, load_rates, save_rates
from kdcache.plan.run import Plan, ask, make_plan

__all__ = [
    "Epochs",
    "Forecast",
    "Machines",
    "Plan",
    "Question",
    "Rates",
    "ask",
    "check_about",
    "forecast_epochs",
    "forecast_extraction",
    "load_rates",
    "make_plan",
    "measure",
    "save_rates",
]
