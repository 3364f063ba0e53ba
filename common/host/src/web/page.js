"use strict";
// Every text goes through textContent: whatever a name holds, it is shown and never run.
const SVG = "http://www.w3.org/2000/svg";
const EVERY_MS = 5000;
const byId = (id) => document.getElementById(id);
const set = (id, text) => { const at = byId(id); if (at.textContent !== text) at.textContent = text; };
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const draw = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const number = (value) => Number(value).toLocaleString("en");
const seconds = (value) => {
  if (value === null || value === undefined) return "not known";
  // The number stays with its unit.
  if (value === 0) return "0\u00a0s";
  if (value < 10) return value.toFixed(1) + "\u00a0s";
  if (value < 120) return Math.round(value) + "\u00a0s";
  if (value < 7200) return Math.round(value / 60) + "\u00a0min";
  return Math.round(value / 3600) + "\u00a0h";
};
const octets = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return (at ? value.toFixed(1) : value) + " " + units[at];
};
const when = (ms) => new Date(ms).toISOString().replace("T", " ").slice(0, 19) + " UTC";
const counted = (count, one, many) => number(count) + " " + (count === 1 ? one : many);

function facts(status) {
  const all = [["Role", status.role + ", epoch " + number(status.epoch)]];
  if (status.daemon === "agent" && status.role === "master") {
    all.push(["Gate", status.gate_open ? "open" : "closed: clients are kept out"]);
  }
  if (status.at_risk) {
    const risk = status.at_risk;
    let text = risk.entries === 0 ? risk.replica + " has everything"
      : risk.replica + " lacks " + counted(risk.entries, "change", "changes") + ", the oldest " + seconds(risk.seconds) + " old";
    if (!risk.known) text = "not known: " + risk.replica + " is not connected, or still compared";
    all.push(["If the master died now", text]);
  }
  if (status.master) {
    const master = status.master;
    all.push(["Master", master.name + (master.connected ? ", heard " : ", NOT CONNECTED, heard ") + seconds(master.heard_seconds) + " ago"]);
    const complete = master.lag_seconds === null ? "not known" : master.lag_seconds === 0 ? "everything is here"
      : "everything up to " + when(master.complete_at) + " is here";
    all.push(["If the master died now", complete]);
  }
  if (status.log) {
    all.push(["Sync log", status.log.failing ? "CANNOT BE WRITTEN" : "entry " + number(status.log.head) + ", " + octets(status.log.bytes)]);
  }
  all.push(["Set aside", status.quarantine.length === 0 ? "nothing"
    : status.quarantine.map((it) => number(it.count) + " " + it.reason).join(", ")]);
  all.push(["Problems in the store", status.problems === 0 ? "none" : number(status.problems) + " (replctl status names them)"]);
  const change = status.last_failover;
  all.push(["Last change of role", change ? when(change.at) + ", " + change.kind + " (" + change.outcome + "), epoch " + number(change.epoch) : "never"]);
  const list = byId("facts");
  list.replaceChildren(...all.map(([name, text]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", text));
    return pair;
  }));
}

function rows(status) {
  byId("replicas").hidden = status.replicas.length === 0;
  byId("rows").replaceChildren(...status.replicas.map((replica) => {
    const row = make("tr", undefined, { role: "row" });
    row.append(make("th", replica.name, { scope: "row", role: "rowheader" }));
    const fill = (label, text, level) => {
      const cell = make("td", undefined, { role: "cell", "data-label": label });
      cell.append(make("span", text, level ? { class: level + "-text" } : {}));
      row.append(cell);
    };
    const copy = replica.copy ? " (copy: " + number(replica.copy.messages) + " of " + number(replica.copy.of) + ")" : "";
    fill("State", replica.state + copy, replica.level);
    fill("Lag", seconds(replica.lag_seconds));
    fill("Changes behind", number(replica.lag_entries));
    fill("Set aside", number(replica.quarantined), replica.quarantined ? "warning" : "");
    fill("Brake", replica.brake ? "holds deletions" : "off", replica.brake ? "warning" : "");
    fill("Place in the log", replica.claim, replica.claim === "ok" ? "" : "warning");
    const check = replica.check;
    const result = !check ? "never" : check.level + " " + when(check.at) + ": "
      + (check.result === "different" ? counted(check.found, "difference", "differences") : check.result);
    fill("Last check", result, check && check.result === "different" ? "warning" : "");
    return row;
  }));
}

function chart(status) {
  const [left, right, top, bottom] = [100, 630, 16, 160];
  const hour = 3600;
  const series = status.lag_history;
  const points = series.flatMap((one) => one.points);
  const most = Math.max(1, ...points.map(([, lag]) => lag));
  const x = (ago) => right - Math.min(1, ago / hour) * (right - left);
  const y = (lag) => bottom - lag / most * (bottom - top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(most * share);
    parts.push(draw("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }));
    parts.push(draw("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, seconds(most * share)));
  }
  for (const [ago, text, anchor] of [[hour, "1 h ago", "start"], [hour / 2, "30 min", "middle"], [0, "now", "end"]]) {
    parts.push(draw("text", { x: x(ago), y: bottom + 22, "text-anchor": anchor }, text));
  }
  series.forEach((one, index) => {
    let run = [];
    let last = null;
    const flush = () => {
      if (run.length === 1) run.push(run[0]);
      if (run.length) parts.push(draw("polyline", { class: "s" + index % 6, points: run.join(" ") }));
      run = [];
    };
    for (const [ago, lag] of one.points) {
      // A hole in the record is a hole in the line.
      if (last !== null && last - ago > 3 * status.lag_step_seconds) flush();
      run.push(x(ago).toFixed(1) + "," + y(lag).toFixed(1));
      last = ago;
    }
    flush();
  });
  byId("chart").replaceChildren(...parts);
  byId("legend").replaceChildren(...series.map((one, index) => {
    const item = make("li");
    const key = draw("svg", { viewBox: "0 0 32 8", "aria-hidden": "true" });
    key.append(draw("polyline", { class: "s" + index % 6, points: "1,4 31,4" }));
    item.append(key, make("span", one.name));
    return item;
  }));
  const highest = series.map((one) => one.name + " " + seconds(Math.max(0, ...one.points.map(([, lag]) => lag))));
  set("highest", highest.length ? "Highest: " + highest.join(", ") + "." : "Nothing has been measured yet.");
}

function headline(level, text) {
  byId("headline").className = level;
  set("headline", text);
  document.title = text;
}

let heard = null;

async function look() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const status = await answer.json();
    set("node", status.node);
    set("what", status.daemon === "agent" ? "agent" : "replica daemon");
    headline(status.level, status.node + ": " + status.headline);
    facts(status);
    rows(status);
    chart(status);
    set("version", "Mailtwin " + status.version + ". ");
    heard = status.now;
    set("updated", "As of " + when(status.now) + ".");
  } catch (error) {
    headline("critical", "The daemon does not answer" + (heard ? " since " + when(heard) : ""));
  }
}

async function follow() {
  if (!document.hidden) await look();
  setTimeout(follow, EVERY_MS);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
follow();
