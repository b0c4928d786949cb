"use strict";

let doc = null;

/** make("p", { className: "x" }, "text", child): text is never markup. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text whose `words` are code -> nodes. */
function inline(text) {
  return text.split(/`([^`]+)`/).map((part, i) => (i % 2 ? make("code", {}, part) : part));
}

const paragraphs = (text) => (text ?? "").split("\n\n").filter(Boolean).map((part) => make("p", {}, ...inline(part)));

/** { $ref } -> what it names, with `name` set to the last part of the reference. */
function resolve(value) {
  if (!value?.$ref) return { value, name: null };
  const parts = value.$ref.split("/").slice(1).map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
  return { value: parts.reduce((at, part) => at[part], doc), name: parts.at(-1) };
}

const show = (value) => JSON.stringify(value);

/** A schema in a few words: "array of 1 to 2048 string". */
function typeOf(schema) {
  const { value, name } = resolve(schema);
  if (name && value.properties) return name;
  const choices = value.anyOf ?? value.oneOf;
  if (choices) return choices.map(typeOf).join(" | ");
  if (value.const !== undefined) return show(value.const);
  if (value.enum) return value.enum.map(show).join(" | ");
  const types = [value.type ?? "any"].flat();
  return types.map((type) => (type === "array" ? arrayOf(value) : word(value, type)) + limits(value, type)).join(" | ");
}

const word = (schema, type) => (type === "string" && schema.minLength === 1 ? "non-empty string" : type);

function arrayOf(schema) {
  const item = schema.items ? typeOf(schema.items) : "any";
  const inside = item.includes(" | ") ? `(${item})` : item;
  if (schema.maxItems) return `array of ${schema.minItems ?? 0} to ${schema.maxItems.toLocaleString("en")} ${inside}`;
  return `${schema.minItems ? "non-empty " : ""}array of ${inside}`;
}

function limits(schema, type) {
  const found = [];
  if (["integer", "number"].includes(type)) {
    if (schema.minimum !== undefined) found.push(`${schema.minimum} or more`);
    if (schema.exclusiveMinimum !== undefined) found.push(`above ${schema.exclusiveMinimum}`);
    if (schema.maximum !== undefined) found.push(`at most ${schema.maximum}`);
  }
  if (type === "string") {
    if (schema.pattern) found.push(schema.pattern);
    if (schema.contentEncoding) found.push(schema.contentEncoding);
  }
  return found.length ? ` (${found.join(", ")})` : "";
}

/** Rows of a definition list: [{ name, note, need, type, text, below }]. */
function rows(entries) {
  return make("dl", { className: "rows" }, ...entries.map(({ name, note, need, type, text, below }) =>
    make("div", {},
      make("dt", {}, make("code", {}, name), note ? make("small", {}, note) : null, need ? make("small", { className: "need" }, "required") : null),
      make("dd", {}, type ? make("div", { className: "type" }, type) : null, ...paragraphs(text), below))));
}

/**
 * A schema's properties, with those of the objects in it behind a disclosure. What a request needs
 * is said; of an answer, what it may lack.
 */
function properties(schema, sent, seen = []) {
  const { value, name } = resolve(schema);
  const entries = Object.entries(value.properties ?? {}).map(([key, property]) => ({
    name: key,
    need: sent && value.required?.includes(key),
    note: sent || value.required?.includes(key) ? "" : "not always there",
    type: typeOf(property) + (resolve(property).value.default === undefined ? "" : `, default ${show(resolve(property).value.default)}`),
    text: property.description ?? resolve(property).value.description,
    below: inner(property, sent, [...seen, name]),
  }));
  return rows(entries);
}

function inner(schema, sent, seen) {
  const { value, name } = resolve(schema);
  const parts = [schema, value.items, ...(value.anyOf ?? []), ...(value.oneOf ?? [])].filter(Boolean);
  const objects = parts.map((part) => ({ part, ...resolve(part) }))
    .filter(({ value: found, name: at }) => found.properties && !(at && seen.includes(at)));
  if (!objects.length) return null;
  return make("div", {}, ...objects.map(({ part, name: at }) =>
    make("details", {}, make("summary", {}, `${at ?? "Fields"}`), make("div", { className: "nest" }, properties(part, sent, [...seen, name])))));
}

function examples(media) {
  const named = Object.values(media.examples ?? {}).map(({ summary, value }) => ({ summary, value }));
  if (media.example !== undefined) named.push({ summary: "Example", value: media.example });
  return named.map(({ summary, value }) => make("details", {}, make("summary", {}, summary),
    make("pre", { tabIndex: 0 }, JSON.stringify(value, null, 2))));
}

function body(content, sent) {
  return Object.entries(content ?? {}).flatMap(([media, about]) => {
    const { value, name } = resolve(about.schema ?? {});
    const head = make("p", { className: "type" }, make("code", {}, media), name ? ` ${name}` : value.type ? ` ${typeOf(value)}` : "");
    const text = value.properties ? [] : paragraphs(value.description);
    return [head, ...text, value.properties ? properties(about.schema, sent) : null, ...examples(about)];
  });
}

function headersOf(response) {
  const entries = Object.entries(response.headers ?? {}).map(([name, header]) => {
    const found = resolve(header).value;
    const example = found.example ? ` For example \`${found.example}\`.` : "";
    return { name, type: typeOf(found.schema), text: (found.description ?? "") + example };
  });
  if (!entries.length) return null;
  return make("details", {}, make("summary", {}, `Headers (${entries.length})`), rows(entries));
}

/** The error codes that a response's schema allows. */
function codesOf(response) {
  const schema = response.content?.["application/json"]?.schema;
  return (schema?.allOf ?? []).flatMap((part) => part.properties?.error?.properties?.code?.enum ?? []);
}

function answers(operation) {
  const all = Object.entries(operation.responses).map(([status, response]) => ({ status, response: resolve(response).value }));
  const good = all.filter(({ status }) => status < 400);
  const bad = all.filter(({ status }) => status >= 400);
  const shown = good.flatMap(({ status, response }) => [
    make("h4", {}, `${status}: ${response.description}`), ...body(response.content, false), headersOf(response)]);
  const entries = bad.map(({ status, response }) => ({ name: status, text: response.description, below: codeList(response) }));
  return [...shown, make("details", {}, make("summary", {}, `Errors: ${bad.map(({ status }) => status).join(", ")}`), rows(entries))];
}

const codeList = (response) => make("div", { className: "codes" }, ...codesOf(response).map((code) => make("code", {}, code)));

function parameters(operation) {
  const found = (operation.parameters ?? []).map((parameter) => resolve(parameter).value);
  if (!found.length) return [];
  const entries = found.map(({ name, in: place, required, schema, description }) =>
    ({ name, note: `in ${place}`, need: required, type: typeOf(schema), text: description }));
  return [make("h4", {}, "Parameters"), rows(entries)];
}

const anchor = (method, path) => `${method}${path.replaceAll(/[^a-z0-9]+/gi, "-")}`.replace(/-$/, "");

function operationCard({ method, path, operation }) {
  const verb = method.toUpperCase();
  const open = operation.security?.length === 0 ? [make("p", { className: "soft" }, "Needs no key.")] : [];
  const request = operation.requestBody
    ? [make("h4", {}, "Request body"), ...body(operation.requestBody.content, true)] : [];
  return make("section", { className: "card", id: anchor(method, path) },
    make("h3", {}, make("span", { className: `method ${verb}` }, verb), make("span", { className: "path" }, path)),
    make("p", { className: "soft" }, operation.summary),
    ...paragraphs(operation.description), ...open, ...parameters(operation), ...request, ...answers(operation));
}

function errorsCard() {
  const responses = Object.values(doc.components.responses).filter((response) => codesOf(response).length);
  const entries = responses.map((response) => ({ name: response["x-status"], text: response.description, below: codeList(response) }));
  return make("section", { className: "card", id: "errors" }, make("h3", {}, "Errors"),
    ...paragraphs(doc.components.schemas.Error.description), properties(doc.components.schemas.Error, false),
    make("h4", {}, "Codes by status"), rows(entries));
}

function keysCard() {
  const entries = Object.entries(doc.components.securitySchemes).map(([name, scheme]) => ({ name, note: `HTTP ${scheme.scheme}`, text: scheme.description }));
  return make("section", { className: "card", id: "keys" }, make("h3", {}, "API keys"), rows(entries));
}

function render() {
  const operations = Object.entries(doc.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ method, path, operation })));
  const groups = doc.tags.map((tag) => ({ tag, own: operations.filter(({ operation }) => operation.tags.includes(tag.name)) }));
  document.getElementById("version").textContent = doc.info.version;
  document.getElementById("routes").replaceChildren(...groups.flatMap(({ tag, own }) => [
    make("h2", {}, tag.name), make("ul", {}, ...own.map(({ method, path }) => menuItem(method, path)))]),
    make("h2", {}, "On every route"), make("ul", {}, plainItem("errors", "Errors"), plainItem("keys", "API keys")));
  document.getElementById("main").replaceChildren(
    make("section", { className: "card" }, make("h2", {}, doc.info.summary), ...paragraphs(doc.info.description)),
    ...groups.flatMap(({ tag, own }) => [
      make("h2", {}, tag.name), make("p", { className: "soft" }, tag.description), ...own.map(operationCard)]),
    make("h2", {}, "On every route"), errorsCard(), keysCard());
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function menuItem(method, path) {
  const verb = method.toUpperCase();
  return make("li", {}, make("a", { href: `#${anchor(method, path)}` }, make("span", { className: `method ${verb}` }, verb), path));
}

const plainItem = (id, text) => make("li", {}, make("a", { href: `#${id}`, className: "plain" }, text));

async function load() {
  const response = await fetch(location.origin + "/openapi.json");
  if (!response.ok) {
    const id = response.headers.get("x-request-id") ?? "none";
    throw new Error(`the server answered ${response.status} (request id ${id})`);
  }
  doc = await response.json();
  render();
}

load().catch((error) => {
  document.getElementById("main").replaceChildren(
    make("section", { className: "card", role: "alert" }, make("h3", {}, "The description cannot be shown"), make("p", {}, String(error.message))));
});
