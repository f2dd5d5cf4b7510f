"""The report's style sheet. Colours after Okabe and Ito, which people with any colour vision can tell apart."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --text: #16191d; --soft: #5a6472; --rule: #dfe3e8; --grid: #e8ebef;
  --main: #0072b2; --second: #00805d; --old: #9aa4b1; --fault: #c24a00; --notice: #5a6472; --odd: #a8327f;
  --productive: #0072b2; --recomputed: #e69f00; --data_wait: #56b4e9; --snapshot_stall: #cc79a7;
  --evaluation: #009e73; --checkpoint: #8a6bbf; --start: #b9c2cd; --recovery: #d55e00; --idle: #8b95a1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2127; --text: #e8ebef; --soft: #9ba6b3; --rule: #323a44; --grid: #262c34;
    --main: #5ab6ee; --second: #3fc79b; --old: #66707d; --fault: #ff8a47; --notice: #9ba6b3; --odd: #e58cc4;
    --productive: #2f8fce; --recomputed: #e6a93a; --data_wait: #7cc6f0; --snapshot_stall: #d58db4;
    --evaluation: #2fb58c; --checkpoint: #a58ad6; --start: #7b8694; --recovery: #e8742a; --idle: #444d58;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 30px 80px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 22px; }
h1 { font-size: 27px; line-height: 1.2; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; letter-spacing: -.005em; margin: 46px 0 12px; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; display: flex; justify-content: space-between; gap: 12px; }
h3 b { font-weight: 600; white-space: nowrap; }
h3 span { color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
p { margin: 8px 0; } a { color: var(--main); }
.sub { flex-basis: 100%; color: var(--soft); margin: 0; }
.state { font-size: 13px; font-weight: 600; padding: 2px 10px; border-radius: 99px; border: 1.5px solid; }
.finished { color: var(--second); } .running { color: var(--main); } .failed { color: var(--fault); }
.preempted, .interrupted { color: var(--notice); }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1px; background: var(--rule);
  border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; margin: 0; }
.tiles div { background: var(--page); padding: 12px 16px 13px; }
.tiles dt, .tiles small { color: var(--soft); font-size: 12.5px; }
.tiles dd { margin: 0; font-size: 21px; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-weight: 400; letter-spacing: 0; }
figure { margin: 0 0 26px; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 30px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); } .axis, .tick { stroke: var(--old); } .grid, .axis, .tick { fill: none; }
.line { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.line.main { stroke: var(--main); } .line.old { stroke: var(--old); stroke-width: 1.4; }
circle.second { fill: var(--second); stroke: var(--page); stroke-width: 1.5; }
.odd { stroke: var(--odd); stroke-width: 2.2; fill: none; stroke-linecap: round; }
.mark path { stroke: var(--fault); stroke-width: 1.2; stroke-dasharray: 3 3; opacity: .75; fill: none; }
.mark rect { fill: var(--fault); } .mark text { fill: var(--page); font-size: 10.5px; font-weight: 700; }
.mark.preemption path, .mark.resize path { stroke: var(--notice); }
.mark.preemption rect, .mark.resize rect { fill: var(--notice); }
.mark.anomaly path { stroke: var(--odd); } .mark.anomaly rect { fill: var(--odd); }
.hover rect { fill: transparent; } .hover rect:hover { fill: var(--soft); opacity: .13; }
.legend { display: flex; gap: 20px; justify-content: flex-end; font-size: 12.5px; color: var(--soft);
  margin: 2px 0 0; }
.legend i { display: inline-block; vertical-align: middle; margin: -2px 7px 0 0; background: currentColor; }
.legend i.dash { width: 18px; height: 2.5px; border-radius: 2px; } .legend i.dot { width: 8px; height: 8px;
  border-radius: 9px; }
.legend i.main { color: var(--main); } .legend i.second { color: var(--second); } .legend i.old { color: var(--old); }
svg text.on { fill: #fff; font-size: 13px; font-weight: 600; }
svg text.on.recomputed, svg text.on.data_wait, svg text.on.snapshot_stall, svg text.on.start { fill: #16191d; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 9px;
  vertical-align: -1px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 7px 18px 7px 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; white-space: nowrap; }
td { overflow-wrap: anywhere; } td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td.k { color: var(--soft); white-space: nowrap; width: 1%; padding-right: 30px; }
tr:target { background: var(--card); } tr:last-child td { border-bottom: 0; }
code, pre, td.m { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 13px 16px; margin: 10px 0;
  overflow-x: auto; } pre.digest { border-left: 4px solid var(--fault); white-space: pre-wrap; }
pre i { color: var(--soft); font-style: normal; }
.note, .none { color: var(--soft); font-size: 13.5px; }
.none { border: 1px dashed var(--rule); border-radius: 8px; padding: 18px; text-align: center; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
footer { color: var(--soft); font-size: 13px; margin-top: 52px; border-top: 1px solid var(--rule);
  padding-top: 14px; }
@media (max-width: 760px) {
  main { padding: 24px 16px 60px; } .tiles { grid-template-columns: repeat(2, 1fr); }
  .pair { grid-template-columns: 1fr; } figure { overflow-x: auto; } svg.wide, svg.bar, table { min-width: 640px;
  } svg text { font-size: 15px; }
}
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid;
  } figure, table { break-inside: avoid; } }
"""
