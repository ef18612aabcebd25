# Every target is one command of bootstrap.py, which sets up what it needs first: without make, `python3 bootstrap.py test`.
# ARGS are passed on: `make train ARGS="--train.steps 20"`, `make test ARGS="-- -k vote"`.
PYTHON ?= python3
ARGS ?=

.PHONY: help train test test-long lint docs bench setup

help:
	@echo "make train      set up, then train the built-in laptop job (about 3 minutes)"
	@echo "make test       set up, then lint and the short tests"
	@echo "make test-long  set up, then the long tests"
	@echo "make lint       lint alone"
	@echo "make docs       run the commands that README and docs show"
	@echo "make bench      the benchmarks, one after the other (hours; --quick: ARGS=--quick)"
	@echo "make setup      set up alone, with what the tests need"

train test test-long lint docs bench:
	@$(PYTHON) bootstrap.py $@ $(ARGS)

setup:
	@$(PYTHON) bootstrap.py setup --dev
