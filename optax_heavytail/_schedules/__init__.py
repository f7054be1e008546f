"""Schedules: functions of the number of updates made so far, from 0."""
