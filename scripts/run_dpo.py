"""The guide's launch command: trains a recipe in the processes that accelerate started, as `preftune run` does.

accelerate launch --config_file recipes/accelerate_configs/ddp.yaml --num_processes=1 scripts/run_dpo.py RECIPE
"""

from preftune.launched import main

if __name__ == "__main__":
    main()
