"""Notifications to people: which events exist, when they occur, their texts and their receivers."""
