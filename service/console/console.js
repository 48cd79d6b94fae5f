"use strict";

const POLL_MS = 2000;
const POINTS = 60;
const MOST_ROWS = 8;
const at = (id) => document.getElementById(id);
const history = { rate: [], ids: [], latency: [], memory: [] };
let last = null;
let described = new Map();

function element(name, text, properties = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, properties);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toString() : value.toFixed(1);
}

async function ask(path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const own = at("key").value;
  if (own) headers.authorization = `Bearer ${own}`;
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  const text = await answer.text();
  if (answer.ok) return text ? JSON.parse(text) : {};
  let message = `status ${answer.status}`;
  try { message = JSON.parse(text).error.message; } catch { /* no explanation came */ }
  throw Object.assign(new Error(message), { status: answer.status });
}

/* ---- live ---- */

function sums(text) {
  const found = { requests: 0, ids: 0, seconds: 0, timed: 0, memory: 0 };
  const names = { hfh_requests_total: "requests", hfh_ids_total: "ids", hfh_request_seconds_sum: "seconds",
    hfh_request_seconds_count: "timed", hfh_resident_bytes: "memory" };
  for (const line of text.split("\n")) {
    const name = names[/^[a-z_]+/.exec(line)?.[0]];
    if (name) found[name] += Number(line.slice(line.lastIndexOf(" ") + 1));
  }
  return found;
}

function spark(name) {
  const canvas = at(`${name}-line`), values = history[name];
  const width = (canvas.width = canvas.clientWidth * devicePixelRatio);
  const height = (canvas.height = canvas.clientHeight * devicePixelRatio);
  const pen = canvas.getContext("2d"), top = Math.max(...values, 1e-9);
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  pen.lineWidth = 1.5 * devicePixelRatio;
  pen.beginPath();
  values.forEach((value, number) => {
    const x = width * (number + POINTS - values.length) / (POINTS - 1);
    pen.lineTo(x, height - 2 - (height - 4) * value / top);
  });
  pen.stroke();
}

function show(name, value, text) {
  history[name].push(value);
  if (history[name].length > POINTS) history[name].shift();
  at(name).textContent = text;
  spark(name);
}

async function poll() {
  const health = at("health");
  try {
    const answer = await fetch("metrics", { headers: at("key").value ? { authorization: `Bearer ${at("key").value}` } : {} });
    if (!answer.ok) throw new Error(`metrics: status ${answer.status}`);
    const now = sums(await answer.text()), time = performance.now() / 1000;
    if (last) {
      const passed = time - last.time, timed = now.timed - last.timed;
      const rate = Math.max(0, now.requests - last.requests) / passed, ids = Math.max(0, now.ids - last.ids) / passed;
      show("rate", rate, short(rate));
      show("ids", ids, short(ids));
      const mean = timed > 0 ? (now.seconds - last.seconds) / timed * 1e6 : 0;
      show("latency", mean, timed > 0 ? (mean < 1000 ? `${Math.round(mean)} µs` : `${(mean / 1000).toFixed(1)} ms`) : "idle");
    }
    show("memory", now.memory, bytes(now.memory));
    last = { ...now, time };
    health.textContent = "serving";
    health.className = "good";
  } catch (error) {
    health.textContent = error instanceof TypeError ? "not reachable" : error.message;
    health.className = "bad";
  }
}

/* ---- tables ---- */

async function tables() {
  const found = (await ask("v1/tables")).tables;
  described = new Map(found.map((table) => [table.name, table]));
  at("no-tables").hidden = found.length > 0;
  at("tables").replaceChildren(...found.map((table) => {
    const row = element("tr");
    const head = element("th", table.name, { scope: "row" });
    row.append(head);
    for (const [text, number] of [[table.num_embeddings.toLocaleString("en"), 1], [table.embedding_dim, 1],
      [bytes(table.snapshot_nbytes), 1], [`${table.snapshot_ratio.toFixed(1)} ×`, 1], [table.unknown, 0]]) {
      row.append(element("td", text, { className: number ? "number" : "" }));
    }
    const version = element("td");
    version.append(element("code", table.version));
    row.append(version);
    return row;
  }));
  const chosen = at("table").value;
  at("table").replaceChildren(...found.map((table) => element("option", table.name)));
  if (described.has(chosen)) at("table").value = chosen;
}

/* ---- look up ---- */

function strip(vector) {
  const canvas = element("canvas", undefined, { className: "strip", width: vector.length, height: 1 });
  canvas.setAttribute("role", "img");
  const least = Math.min(...vector), most = Math.max(...vector), top = Math.max(-least, most, 1e-9);
  canvas.setAttribute("aria-label", `${vector.length} entries from ${least.toPrecision(3)} to ${most.toPrecision(3)}`);
  const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
  vector.forEach((value, place) => {
    pen.fillStyle = `rgb(${style.getPropertyValue(value < 0 ? "--cold" : "--warm")} / ${Math.abs(value) / top})`;
    pen.fillRect(place, 0, 1, 1);
  });
  return canvas;
}

function card(name, vector, near) {
  const made = element("article");
  const norm = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  made.append(element("h3", name), strip(vector), element("p", `norm ${norm.toPrecision(4)} · nearest, with their scores`));
  const list = element("ol");
  near.forEach(([id, label, score]) => {
    const item = element("li");
    const button = element("button", `${label} · ${score === null ? "–" : score.toFixed(3)}`, { className: "small", type: "button" });
    button.addEventListener("click", () => {
      at("kind").value = "ids";
      at("wanted").value = id;
      at("look").requestSubmit();
      at("wanted").focus();
    });
    item.append(button);
    list.append(item);
  });
  made.append(list);
  return made;
}

async function look(event) {
  event.preventDefault();
  const problem = at("look-error"), button = event.target.querySelector("button");
  problem.textContent = "";
  button.disabled = true;
  try {
    const table = at("table").value, kind = at("kind").value;
    let wanted = at("wanted").value.split(",").map((part) => part.trim()).filter(Boolean);
    if (!wanted.length || wanted.length > MOST_ROWS) throw new Error(`Give 1 to ${MOST_ROWS} ids or keys, separated by commas.`);
    if (kind === "ids") {
      const wrong = wanted.find((part) => !/^\d+$/.test(part) || !Number.isSafeInteger(Number(part)));
      if (wrong !== undefined) throw new Error(`${wrong} is not an id: give integers from 0 to 2^53 - 1 here, or choose “key”.`);
      wanted = wanted.map(Number);
    }
    const base = `v1/tables/${encodeURIComponent(table)}`;
    const rows = (await ask(`${base}/lookup`, { [kind]: wanted })).embeddings;
    const near = await ask(`${base}/search`, { [kind]: wanted, k: 10, metric: at("metric").value, exclude_self: true });
    at("rows").replaceChildren(...rows.map((vector, number) => {
      const labels = near.keys ? near.keys[number] : near.ids[number];
      return card(`${kind === "ids" ? "id " : ""}${wanted[number]}`, vector,
        near.ids[number].map((id, place) => [id, labels[place], near.scores[number][place]]));
    }));
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "The service is not reachable." : error.message;
  } finally {
    button.disabled = false;
  }
}

/* ---- versions ---- */

async function snapshots() {
  let found;
  try {
    found = (await ask("v1/snapshots")).snapshots;
  } catch (error) {
    at("versions").hidden = error.status === 404;
    at("versions-error").textContent = error.status === 404 ? "" : error.message;
    return;
  }
  at("versions").hidden = false;
  at("versions-error").textContent = "";
  at("snapshots").replaceChildren(...found.map((snapshot) => {
    const row = element("tr"), version = element("th", undefined, { scope: "row" }), action = element("td");
    version.append(element("code", snapshot.version || snapshot.file));
    const names = snapshot.tables.map((table) => table.name).join(", ");
    row.append(version, element("td", names), element("td", snapshot.nbytes ? bytes(snapshot.nbytes) : "–", { className: "number" }),
      element("td", snapshot.reason ? `${snapshot.state}: ${snapshot.reason}` : snapshot.state), action);
    if (snapshot.version && snapshot.state !== "active") {
      const button = element("button", "Activate", { className: "small", type: "button" });
      button.addEventListener("click", () => change(`v1/snapshots/${encodeURIComponent(snapshot.version)}/activate`, button));
      action.append(button);
    }
    return row;
  }));
}

async function change(path, button) {
  button.disabled = true;
  try {
    await ask(path, {});
    await Promise.all([tables(), snapshots()]);
  } catch (error) {
    at("versions-error").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

async function load() {
  try {
    await tables();
    await snapshots();
    at("look-error").textContent = "";
  } catch (error) {
    at("look-error").textContent = error.message;
    if (error.status === 401 || error.status === 403) at("versions").hidden = false; // the key is typed in there
  }
}

async function start() {
  at("look").addEventListener("submit", look);
  at("admin").addEventListener("submit", (event) => { event.preventDefault(); load(); });
  at("rollback").addEventListener("click", (event) => change("v1/snapshots/rollback", event.target));
  await poll();
  setInterval(poll, POLL_MS);
  await load();
}

start();
