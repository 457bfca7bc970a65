"""Help formatter that shows defaults."""

import argparse


class ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Like argparse's formatter, but without "(default: None)", "(default: [])" and "(default: False)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)
