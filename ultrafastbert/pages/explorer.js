// The explorer: finds texts, shows the path of a token in each layer, the tokens of a leaf, and two models side by
// side. Texts are set as text, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const CONTEXT = 5, MOST = 100; // tokens around one in a context; contexts and texts that are listed at first
  const view = { text: 0, token: 0, pinned: false, model: 0, other: null, color: null, leaf: null };

  function make(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value);
    }
    made.append(...content);
    return made;
  }
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const leaves = (model, text, token) => data.models[model].paths[text].leaves[token];
  const hasTrees = (layer) => data.layers[layer].trees > 1;
  const placeName = (layer, tree, leaf) => `layer ${layer}${hasTrees(layer) ? `, tree ${tree}` : ""}, leaf ${leaf}`;

  // Layers in which the leaf of a token differs between the two models
  function changedLayers(text, token) {
    if (view.other === null) return [];
    const before = leaves(view.model, text, token), after = leaves(view.other, text, token);
    return before.map((trees, layer) => trees.some((leaf, tree) => leaf !== after[layer][tree]) ? layer : -1).filter((layer) => layer >= 0);
  }

  // --- texts

  let limit = MOST;
  function drawTexts() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.texts.map((text, index) => [text, index]).filter(([text]) => words.every((word) => text.text.toLowerCase().includes(word)));
    const shown = found.slice(0, limit).map(([text, index]) => {
      const long = text.text.length > 160, label = long ? `${text.text.slice(0, 160)}…` : text.text;
      return make("li", {}, make("button", { type: "button", "data-text": index, "aria-current": index === view.text ? "true" : null, onclick: () => choose(index) }, label));
    });
    $("texts").replaceChildren(...shown);
    if (found.length > limit) {
      const more = () => { limit = found.length; drawTexts(); $("texts").children[MOST].firstChild.focus(); };
      $("texts").append(make("li", {}, make("button", { type: "button", onclick: more }, `Show all ${found.length}`)));
    }
    $("found").textContent = words.length ? `${count(found.length, "text")} with these words` : count(found.length, "text");
  }

  function choose(text, token = 0, pinned = false) {
    Object.assign(view, { text, token, pinned });
    for (const button of $("texts").querySelectorAll("[data-text]")) {
      if (Number(button.dataset.text) === text) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    drawTokens();
    drawPaths();
  }

  // Up and down move through the list of texts, from the search field too
  function moveInTexts(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...$("texts").querySelectorAll("button")];
    if (event.target.id === "search" && event.key === "Enter" && buttons.length) return buttons[0].click();
    if (!move || !buttons.length) return;
    event.preventDefault();
    const to = buttons.indexOf(document.activeElement) + move;
    if (to < 0) $("search").focus(); else buttons[Math.min(to, buttons.length - 1)].focus();
  }

  // --- tokens

  function drawTokens() {
    const { tokens, cut } = data.texts[view.text];
    const row = make("div", { class: "tokens", role: "group", "aria-label": "Tokens of the text", onkeydown: moveInTokens });
    let changed = 0;
    tokens.forEach((token, index) => {
      const layers = changedLayers(view.text, index);
      changed += layers.length > 0;
      const button = make("button", {
        type: "button", "data-token": index, class: layers.length ? "changed" : null, tabindex: index === view.token ? 0 : -1,
        onclick: () => { view.pinned = !(view.pinned && view.token === index); show(index); },
        onpointerenter: (event) => { if (event.pointerType === "mouse" && !view.pinned) show(index); },
        onfocus: () => { if (!view.pinned) show(index); },
      }, token || "(empty)");
      if (layers.length) {
        button.title = `another leaf in ${layers.map((layer) => `layer ${layer}`).join(", ")}`;
        button.append(make("sup", { "aria-label": `, another leaf in ${count(layers.length, "layer")}` }, String(layers.length)));
      }
      if (view.color !== null) {
        const [leaf] = leaves(view.model, view.text, index)[view.color];
        button.style.boxShadow = `inset 0 -5px hsl(${(leaf * 137.508) % 360} 70% 50%)`; // near leaves, other colors
        button.title = [placeName(view.color, 0, leaf), button.title].filter(Boolean).join("; ");
      }
      row.append(button);
    });
    $("tokens").replaceChildren(row);
    if (cut) $("tokens").append(make("p", { class: "muted" }, "The text is longer than the encoder's positions, and is cut here."));
    if (view.other !== null) $("tokens").append(make("p", { class: "muted" }, `${count(changed, "token")} of ${tokens.length} with another leaf in some layer (the small number says in how many).`));
    if (view.color !== null && hasTrees(view.color)) $("tokens").append(make("p", { class: "muted" }, "The color is that of the leaf in tree 0."));
    press();
  }

  function show(token) {
    view.token = token;
    press();
    drawPaths();
  }

  function press() {
    for (const button of $("tokens").querySelectorAll("[data-token]")) {
      const here = Number(button.dataset.token) === view.token;
      button.setAttribute("aria-pressed", here && view.pinned ? "true" : "false");
      button.tabIndex = here ? 0 : -1;
    }
  }

  function moveInTokens(event) {
    const buttons = [...event.currentTarget.querySelectorAll("[data-token]")];
    const at = buttons.indexOf(document.activeElement), last = buttons.length - 1;
    if (event.key === "Escape") { view.pinned = false; press(); }
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    view.pinned = false;
    buttons[Math.max(0, Math.min(last, to))].focus();
  }

  // --- paths

  // The decisions to a leaf, root first: node in heap order, and whether it goes to the right
  function turns(leaf, depth) {
    const found = [];
    for (let level = 0, node = 0; level < depth; level++) {
      const right = (leaf >> (depth - 1 - level)) & 1;
      found.push([node, right]);
      node = 2 * node + 1 + right;
    }
    return found;
  }

  function drawWay(model, layer, tree, reference) {
    const { depth } = data.layers[layer], path = data.models[model].paths[view.text];
    const leaf = path.leaves[view.token][layer][tree], margins = path.margins[view.token][layer][tree];
    const list = make("ol", { class: "turns", "aria-label": `Turns to leaf ${leaf}` });
    turns(leaf, depth).forEach(([node, right], level) => {
      const margin = margins[level], size = margin === null ? "?" : Math.abs(margin).toFixed(Math.abs(margin) < 10 ? 2 : 1);
      const near = margin !== null && Math.abs(margin) < data.near_zero;
      const other = reference !== null && (reference >> (depth - 1 - level)) !== (leaf >> (depth - 1 - level));
      const side = right ? "right" : "left";
      const title = `level ${level}, node ${node}: ${side}, z = ${margin ?? "not finite"}${near ? ", near zero" : ""}`;
      list.append(make("li", { class: [side, near && "near", other && "other"].filter(Boolean).join(" "), title }, make("b", { "aria-label": side }, right ? "→" : "←"), size));
    });
    const pressed = view.leaf && view.leaf.join() === [model, layer, tree, leaf].join();
    const button = make("button", { type: "button", class: "leaf", "data-leaf": [model, layer, tree, leaf].join(), "aria-pressed": pressed ? "true" : "false",
      onclick: () => chooseLeaf(model, layer, tree, leaf) }, `leaf ${leaf}`);
    return [list, button, leaf];
  }

  function drawPaths() {
    const models = view.other === null ? [view.model] : [view.model, view.other];
    const changed = changedLayers(view.text, view.token);
    const token = data.texts[view.text].tokens[view.token];
    const intro = make("p", {}, make("mark", {}, token), ` is token ${view.token} of the text${view.pinned ? ", kept" : ""}. `,
      make("span", { class: "muted" }, `Each box is a decision, from the root: the side and |z|. A dashed box is near zero (|z| < ${data.near_zero}).`));
    const boxes = data.layers.map((size, layer) => {
      const box = make("div", { class: changed.includes(layer) ? "path changed" : "path" });
      box.append(make("h3", {}, `Layer ${layer}`), changed.includes(layer) ? " another leaf" : "");
      for (let tree = 0; tree < size.shown_trees; tree++) {
        let reference = null;
        for (const model of models) {
          const [list, button, leaf] = drawWay(model, layer, tree, reference);
          reference = leaf;
          const names = [hasTrees(layer) && `tree ${tree}`, models.length > 1 && data.models[model].name].filter(Boolean);
          const way = make("div", { class: "way" });
          if (names.length) way.append(make("small", {}, names.join(", ")));
          way.append(list, button);
          box.append(way);
        }
      }
      return box;
    });
    $("paths").replaceChildren(intro, ...boxes);
  }

  // --- leaves

  function chooseLeaf(...place) {
    view.leaf = place;
    for (const button of $("paths").querySelectorAll("[data-leaf]")) {
      button.setAttribute("aria-pressed", button.dataset.leaf === place.join() ? "true" : "false");
    }
    drawLeaf(MOST);
    $("leaf").firstChild.focus();
  }

  function drawLeaf(most) {
    if (view.leaf === null) {
      $("leaf").replaceChildren(make("p", { class: "muted" }, "Click a leaf above."));
      return;
    }
    const [model, layer, tree, leaf] = view.leaf, { name, tokens, leaves: all, paths } = data.models[model];
    const { tokens: here, top } = all[layer][tree][leaf];
    const contexts = [];
    data.texts.forEach((text, index) => paths[index].leaves.forEach((place, token) => { if (place[layer][tree] === leaf) contexts.push([index, token]); }));
    const rows = top.map(([token, number, fraction]) => make("tr", {}, make("th", { scope: "row" }, token), make("td", {}, number.toLocaleString("en")), make("td", {}, `${(100 * fraction).toFixed(0)} %`)));
    const head = make("thead", {}, make("tr", {}, ...["token", "count here", "of its occurrences"].map((cell) => make("th", { scope: "col" }, cell))));
    const listed = contexts.slice(0, most).map(([text, token]) => {
      const words = data.texts[text].tokens, button = make("button", { type: "button", onclick: () => { choose(text, token, true); $("tokens").querySelector(`[data-token="${token}"]`).focus(); } });
      button.append(token > CONTEXT ? "… " : "", `${words.slice(Math.max(0, token - CONTEXT), token).join(" ")} `, make("mark", {}, words[token]), ` ${words.slice(token + 1, token + 1 + CONTEXT).join(" ")}`);
      return make("li", {}, button);
    });
    const parts = [
      make("h3", { tabindex: -1 }, `${name}: ${placeName(layer, tree, leaf)}`),
      make("p", {}, `${count(here, "token")} of ${tokens.toLocaleString("en")} (${(100 * here / tokens).toFixed(1)} %) in all texts.`, top.length >= data.most_tokens_of_a_leaf ? ` The ${top.length} most frequent:` : ""),
      make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Tokens of the leaf" }, make("table", {}, head, make("tbody", {}, ...rows))),
      make("h3", {}, `${count(contexts.length, "context")} in this page`),
      make("ul", { class: "contexts" }, ...listed),
    ];
    if (contexts.length > most) parts.push(make("button", { type: "button", onclick: () => drawLeaf(contexts.length) }, `Show all ${contexts.length.toLocaleString("en")} contexts`));
    $("leaf").replaceChildren(...parts);
  }

  // --- controls

  const chosen = (id) => $(id) && $(id).value !== "" ? Number($(id).value) : null;
  function change() {
    Object.assign(view, { model: chosen("model"), other: chosen("other"), color: chosen("color") });
    if (view.other === view.model) view.other = null;
    if (view.leaf && view.leaf[0] !== view.model && view.leaf[0] !== view.other) view.leaf = null;
    drawTokens();
    drawPaths();
    drawLeaf(MOST);
  }
  if ($("other") && data.models.length > 1) { // the last two checkpoints that differ are what one compares first
    $("model").value = "0";
    $("other").value = String(data.models.length - 1);
  }
  for (const id of ["model", "other", "color"]) if ($(id)) $(id).addEventListener("change", change);
  $("search").addEventListener("input", () => { limit = MOST; drawTexts(); });
  $("search").addEventListener("keydown", moveInTexts);
  $("texts").addEventListener("keydown", moveInTexts);
  drawTexts();
  change();
})();
