"use strict";
// One vote at a time: the page goes on only when the server has said that the vote is on its disk.

const RETRY_MS = 1500;
const MAY_BE_SMALL_PX = 256;
const element = (id) => document.getElementById(id);
const state = { rater: "", session: "", items: [], at: 0, shownAt: 0, isBusy: false, isShown: false };

const api = async (address, options) => {
  const answer = await fetch(address, options);
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim()), { status: answer.status });
  return answer.json();
};

const trouble = (text) => {
  element("trouble").textContent = text;
  element("trouble").hidden = !text;
};

const view = (name) => {
  for (const id of ["welcome", "compare", "end"]) element(id).hidden = id !== name;
};

const imageAddress = (item, place) =>
  `/images/${state.session}/${item.pair}/${place}?rater=${encodeURIComponent(state.rater)}`;

const loadImage = (image, address) =>
  new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(new Error("an image cannot be loaded; is t2i label still running? Reload the page."));
    image.src = address;
  });

function showProgress() {
  const done = state.items.filter((item) => item.choice).length;
  const bar = element("progress");
  bar.setAttribute("aria-valuemax", state.items.length);
  bar.setAttribute("aria-valuenow", done);
  bar.firstElementChild.style.width = `${(100 * done) / state.items.length}%`;
  element("count").textContent = `${done} of ${state.items.length} pairs judged`;
}

async function show(at) {
  state.at = Math.max(0, at);
  showProgress();
  if (state.at >= state.items.length) return showEnd();
  view("compare");
  const item = state.items[state.at];
  state.isShown = false;
  element("compare").classList.add("loading");
  element("prompt").textContent = item.prompt;
  for (const name of ["first", "second", "tie", "skip"])
    element(name).classList.toggle("chosen", item.choice === name);
  element("back").disabled = state.at === 0;
  element("forward").disabled = !item.choice;
  const images = ["first", "second"].map((place) => [element(place).querySelector("img"), imageAddress(item, place)]);
  try {
    // Both appear together: the one that comes first would draw the eye.
    await Promise.all(images.map(([image, address]) => loadImage(image, address)));
  } catch (error) {
    return trouble(error.message);
  }
  if (state.items[state.at] !== item) return;
  for (const [image] of images) image.classList.toggle("small", image.naturalWidth < MAY_BE_SMALL_PX);
  element("compare").classList.remove("loading");
  trouble("");
  state.isShown = true;
  state.shownAt = performance.now();
  const next = state.items[state.at + 1];
  if (next) for (const place of ["first", "second"]) new Image().src = imageAddress(next, place);
}

async function send(vote) {
  for (;;) {
    try {
      await api("/votes", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(vote),
      });
      return trouble("");
    } catch (error) {
      if (error.status && error.status !== 507) throw error;
      trouble(`Not saved yet: ${error.status ? error.message : "t2i label does not answer. Start it again"}. Trying again.`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

async function choose(choice) {
  if (state.isBusy || !state.isShown) return;
  const item = state.items[state.at];
  // A skip leaves an earlier choice alone.
  if (choice === "skip" && item.choice) return show(state.at + 1);
  state.isBusy = true;
  const seconds = (performance.now() - state.shownAt) / 1000;
  element(choice).classList.add("chosen");
  try {
    await send({ rater: state.rater, session: state.session, pair: item.pair, choice, seconds });
    item.choice = choice;
    await show(state.at + 1);
  } catch (error) {
    element(choice).classList.remove("chosen");
    trouble(`Not saved: ${error.message}.`);
  } finally {
    state.isBusy = false;
  }
}

const browse = (step) => {
  const mayLeave = step < 0 || (state.items[state.at] && state.items[state.at].choice);
  if (!state.isBusy && mayLeave) show(state.at + step);
};

async function showEnd() {
  state.isShown = false;
  view("end");
  const counts = { skip: 0, tie: 0 };
  for (const item of state.items) counts[item.choice] = (counts[item.choice] || 0) + 1;
  element("end-count").textContent =
    `${state.items.length} pairs, of which ${counts.tie} about equal and ${counts.skip} skipped. Everything is saved.`;
  element("again").hidden = !counts.skip;
  await showAgreement();
}

function goThroughSkipped() {
  const isSkipped = (item) => item.choice === "skip";
  for (const item of state.items.filter(isSkipped)) item.choice = null;
  state.items.sort((a, b) => Boolean(b.choice) - Boolean(a.choice));
  show(state.items.findIndex((item) => !item.choice));
}

const cell = (name, text, kind) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

function agreementTable(rows) {
  if (!rows.length) return cell("p", "Nothing to tell yet: no pair has been judged by two raters.", "muted");
  const table = document.createElement("table");
  const line = (kind, texts) => {
    const row = document.createElement("tr");
    row.append(...texts.map((text, column) => cell(kind, text, column ? "figure" : "")));
    return row;
  };
  const note = "Kappa is 1 at full agreement and 0 at what chance gives: Cohen's for two raters, Fleiss' for more.";
  table.append(line("th", ["Raters", "Pairs", "Same choice", "Kappa"]));
  for (const row of rows)
    table.append(
      line("td", [
        row.raters.join(", "),
        row.pairs,
        `${Math.round(100 * row.share)} %`,
        row.kappa === null ? "not defined" : row.kappa.toFixed(2),
      ]),
    );
  const whole = document.createElement("div");
  whole.append(table, cell("p", note, "muted"));
  return whole;
}

async function showAgreement() {
  try {
    const rows = await api("/agreement");
    for (const box of document.querySelectorAll(".agreement")) box.replaceChildren(agreementTable(rows));
  } catch {
    trouble("t2i label does not answer.");
  }
}

async function start(event) {
  event.preventDefault();
  try {
    const name = encodeURIComponent(element("name").value);
    Object.assign(state, await api(`/session?rater=${name}`));
  } catch (error) {
    return trouble(error.status ? error.message : "t2i label does not answer.");
  }
  element("rater").textContent = state.rater;
  element("show-agreement").hidden = false;
  trouble("");
  const open = state.items.findIndex((item) => !item.choice);
  document.activeElement.blur();
  show(open < 0 ? state.items.length : open);
}

const KEYS = {
  1: () => choose("first"),
  2: () => choose("second"),
  t: () => choose("tie"),
  s: () => choose("skip"),
  arrowleft: () => browse(-1),
  arrowright: () => browse(1),
};

document.addEventListener("keydown", (event) => {
  const isElsewhere = event.ctrlKey || event.metaKey || event.altKey || event.repeat || element("dialog").open;
  if (isElsewhere || event.target === element("name") || !state.items.length) return;
  const action = KEYS[event.key.toLowerCase()];
  if (action) {
    event.preventDefault();
    action();
  }
});
element("name-form").addEventListener("submit", start);
for (const choice of ["first", "second", "tie", "skip"]) element(choice).addEventListener("click", () => choose(choice));
element("back").addEventListener("click", () => browse(-1));
element("forward").addEventListener("click", () => browse(1));
element("look-back").addEventListener("click", () => browse(-1));
element("again").addEventListener("click", goThroughSkipped);
element("show-agreement").addEventListener("click", async () => {
  await showAgreement();
  element("dialog").showModal();
});
