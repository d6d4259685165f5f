"""The views of the types that the core speaks; imported when a result is first shown."""

from __future__ import annotations

from layerscope.probe.records import Profile
from layerscope.report import comparison, single, text
from layerscope.report.views import register_view
from layerscope.verdict.types import Comparison, Verdict

register_view(Comparison, text=text.comparison_text, fragment=comparison.fragment, title=comparison.title)
register_view(Profile, text=text.profile_text, fragment=single.profile_fragment, title=single.profile_title)
register_view(Verdict, text=text.verdict_text, fragment=single.verdict_fragment, title=single.verdict_title)
