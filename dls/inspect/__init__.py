"""`python -m dls.inspect RUN [RUN ...]`: look into runs.

A RUN is a run's folder, a trace file, or a folder with runs below it, of which all are taken.
trace.h5 and the trace-STEP.h5 beside it are read as one run; what differs between ranks is averaged
before they are joined. `--json` prints one object {"runs": [...]}, also for a single run; null is
what was not recorded, is undefined, or is infinite; times are in seconds. Each run has

    run       path method density dls_steps model dataset backend lr seed ranks steps hosts
              version commit started config (null: density of dense, dls_steps of all but dls;
              ranks: one a file; steps: the last recorded)
    recorded window  recorded steps, and how many of them a smoothed mean looks back
    final     train_loss (smoothed) test_loss accuracy best_accuracy best_step
    curve     step loss accuracy set_size threshold_ratio global_share: lists over at most 8
              points, smoothed means over the ranks; set_size is max - min of the layers'
              thresholds, threshold_ratio max / min; accuracy and global_share are the latest so
              far
    layers    name kind size; k_ k_rank0_ ratio_ threshold_ residual_norm_, each with first and
              last: lists over the layers, at the first and the last recorded step; means over the
              ranks, ratio is k / size
    traffic   bytes_per_step dense_bytes_per_step share_of_dense total_bytes dense_total_bytes
              compression received_bytes_per_step ring_bytes_per_step share_of_ring
              total_received_bytes ring_total_bytes uploaded_share, of one rank; totals are over
              the recorded steps, uploaded_share is the mean of K / n, received is what the other
              ranks' messages bring, ring what an Allreduce in a ring would move each way
    timing    steps; seconds and share, by phase and in total: means of a step, without each
              file's first recorded one if there are more; `exposed` is waiting for the network,
              `other` what no phase covers; hidden_share: of the time that messages were under
              way, the share in which the rank did not wait, mean over the ranks and the recorded
              steps that --diagnose-every looked at

`--html` writes a page and `--plot` its pictures alone, both of all runs together; with `--figure`
`--plot` draws one picture, for print; `--csv` writes what the pictures show as a table. `--follow`
shows runs as they go on, and everything when they are over. `--repair` rewrites the traces that a
killed run left behind, so that any viewer of HDF5 opens them.

Where no step was recorded, lists, traffic and timing are empty and of the layers only name, kind
and size are there.
"""
