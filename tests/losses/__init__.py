"""Closed-form tests of simjax/losses."""
