// Small helpers around the DOM. Contents are set as text, never as HTML.

/** An element: `el("p", { class: "quiet" }, "text", child)`. Functions are listeners. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets the text only where it is another one: a screen reader and the focus stay where they are. */
export function text(node, value) {
  const wanted = String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function badge(node, word, kind) {
  text(node, word);
  const wanted = `badge ${kind}`;
  if (node.className !== wanted) node.className = wanted;
}

/** Children of `parent` become those of `items`, each known by its key and kept while it is there. */
export function keyed(parent, items, keyOf, create) {
  const before = parent.kept ?? new Map();
  const now = new Map();
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const entry = before.get(key) ?? create(item);
    entry.update(item);
    now.set(key, entry);
    before.delete(key);
    if (entry.node === at) at = at.nextSibling;
    else parent.insertBefore(entry.node, at);
  }
  for (const gone of before.values()) gone.node.remove();
  parent.kept = now;
}

/** A table that stays one for screen readers where narrow screens show it as cards. */
export function table(caption, heads) {
  const body = el("tbody", { role: "rowgroup" });
  const cells = heads.map((head) => el("th", { role: "columnheader", scope: "col" }, head));
  const node = el("table", { role: "table", "aria-label": caption },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells)), body);
  return { node, body };
}

/** A row of a `table`: `cells` are pairs of a label and a class. */
export function row(cells) {
  const made = cells.map(([label, kind]) =>
    el("td", { role: "cell", "data-label": label || null, class: kind ?? null }));
  return { node: el("tr", { role: "row" }, ...made), cells: made };
}

/** For who does not see the page change. */
export function say(words) {
  text(document.getElementById("said"), words);
}

/**
 * Asks in a dialog. `fields` are elements; `act` does it, and what it throws is shown. The focus goes
 * back to where it was.
 */
export function ask({ title, fields, button, danger, act }) {
  const wrong = el("p", { class: "wrong", role: "alert" });
  const yes = el("button", { type: "submit", class: danger ? "main danger" : "main" }, button);
  const no = el("button", { type: "button", click: () => dialog.close() }, "Cancel");
  const form = el("form", { method: "dialog" }, el("h2", { id: "asked" }, title), ...fields, wrong,
    el("div", { class: "buttons" }, no, yes));
  const dialog = el("dialog", { "aria-labelledby": "asked" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    yes.disabled = true;
    text(wrong, "");
    try {
      const said = await act();
      dialog.close();
      if (said) say(said);
    } catch (error) {
      text(wrong, error.message);
    }
    yes.disabled = false;
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  (form.querySelector("input, select") ?? no).focus();
}

let fieldNumber = 0;

/** A labelled input or select. */
export function field(label, input, hint) {
  input.id = `field-${fieldNumber += 1}`;
  const parts = [el("label", { for: input.id }, label), input];
  if (hint) {
    input.setAttribute("aria-describedby", `${input.id}-hint`);
    parts.push(el("p", { class: "quiet", id: `${input.id}-hint` }, hint));
  }
  return el("div", {}, ...parts);
}
