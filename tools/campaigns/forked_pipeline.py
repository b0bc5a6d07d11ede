"""tools/pipeline.py whose stages are forked, not started anew: python tools/campaigns/forked_pipeline.py WORD ..."""
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from processor.stages import running
from tools.campaigns.tool_server import ROOT, run_logged_by_fork

if __name__ == "__main__":
    running.run_logged = run_logged_by_fork
    runpy.run_path(str(ROOT / "tools" / "pipeline.py"), run_name="__main__")
