#!/usr/bin/env bash
# Prints the folder of the chat templates that the Python package trl ships (Apache-2.0), for tests that compare what they render.
# They are kept in $FOURBIT_MODELS (~/.cache/fourbit-models).
set -euo pipefail
source "$(dirname "$0")/wheel.sh"
keep trl-1.16.0-chat-templates "" trl/chat_templates trl==1.16.0
