"""Exports of one data set in many formats, each by the tool that the format belongs to."""
