// Write src/models.ts from the JSON Schemas of the service; `--print` writes to stdout instead.
//
// It knows the few words of JSON Schema that the service uses, and refuses all others, so that
// nothing is left out unnoticed.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const SCHEMAS = new URL("../../../docs/reference/schemas/", import.meta.url);
const MODELS = new URL("../src/models.ts", import.meta.url);
const HEAD = "// `npm run models` writes this file from docs/reference/schemas.";
const JSON_VALUE = `export type JsonValue =
  | string
  | number
  | boolean
  | null
  | JsonValue[]
  | { [name: string]: JsonValue };`;
const WIDTH = 96; // of a comment
// What a type cannot say: the service checks it.
const LIMITS = ["pattern", "format", "default", "uniqueItems", "minLength", "maxLength"].concat(
  ["minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum"],
);
const SAID = new Set([
  ...LIMITS,
  ...["type", "properties", "required", "additionalProperties", "items", "enum", "const"],
  ...["anyOf", "$ref", "$defs", "$schema", "title", "description", "examples"],
]);

function read() {
  const files = readdirSync(SCHEMAS).filter((name) => name.endsWith(".json"));
  const all = files.sort().map((file) => ({
    name: file.replace(/\.json$/, ""),
    schema: JSON.parse(readFileSync(new URL(file, SCHEMAS), "utf8")),
  }));
  return {
    messages: all.filter(({ name }) => name.startsWith("els.")),
    events: all.filter(({ name }) => !name.startsWith("els.")),
  };
}

/** Collect what the schemas share, each once. */
function shared(all) {
  const found = new Map();
  for (const { schema } of all) {
    for (const [name, each] of Object.entries(schema.$defs ?? {})) {
      if (found.has(name)) same(name, found.get(name), each);
      else if (name !== "JsonValue") found.set(name, each);
    }
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
}

function same(name, one, other) {
  if (JSON.stringify(one) !== JSON.stringify(other)) throw new Error(`there are two ${name}`);
}

/** The properties of an event but `type` and `data`, which all events must share. */
function envelope(events) {
  const [first, ...others] = events.map(({ schema }) => {
    const { type: _, data: __, ...rest } = schema.properties;
    return { properties: rest, required: schema.required.filter((name) => name in rest) };
  });
  for (const other of others) same("envelopes", first, other);
  return first;
}

function type(schema, indent) {
  const unknown = Object.keys(schema).filter((word) => !SAID.has(word));
  if (unknown.length > 0) throw new Error(`${unknown} is no word of JSON Schema known here`);
  if (schema.$ref) return schema.$ref.replace("#/$defs/", "");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return list(type(schema.items, indent));
  if (schema.properties) return fields(schema, indent);
  if (schema.anyOf) return schema.anyOf.map((each) => type(each, indent)).join(" | ");
  if (schema.type === "object") return `Record<string, ${values(schema, indent)}>`;
  const simple = { integer: "number", number: "number", string: "string", boolean: "boolean" };
  const found = { ...simple, null: "null" }[schema.type];
  if (!found) throw new Error(`no type for ${JSON.stringify(schema)}`);
  return found;
}

function list(item) {
  return /[|{]/.test(item) ? `(${item})[]` : `${item}[]`;
}

function values(schema, indent) {
  const given = schema.additionalProperties;
  return typeof given === "object" ? type(given, indent) : "JsonValue";
}

function fields({ properties, required = [] }, indent = "") {
  const inner = `${indent}  `;
  const lines = Object.entries(properties).map(([name, schema]) => {
    const start = `${inner}${name}${required.includes(name) ? "" : "?"}:`;
    return `${comment(schema.description, inner)}${folded(start, type(schema, inner), inner)};\n`;
  });
  return `{\n${lines.join("")}${indent}}`;
}

/** Write a union that is too long for a line with one of its types a line. */
function folded(start, types, indent) {
  if (start.length + types.length < WIDTH || types.includes("{")) return `${start} ${types}`;
  return [start, ...types.split(" | ").map((each) => `${indent}  | ${each}`)].join("\n");
}

function comment(text, indent = "") {
  if (!text) return "";
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length + indent.length > WIDTH - 3) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  if (lines.length === 1) return `${indent}/** ${lines[0]} */\n`;
  return `${indent}/**\n${lines.map((line) => `${indent} * ${line}\n`).join("")}${indent} */\n`;
}

function declare(name, schema, more = "") {
  const about = comment(schema.description);
  if (!schema.properties) return `${about}export type ${name} = ${type(schema, "")};`;
  return `${about}export interface ${name}${more} ${fields(schema)}`;
}

function event({ name, schema }) {
  const { data } = schema.properties;
  const own = { properties: { data }, required: schema.required };
  const about = { ...own, description: schema.description };
  return declare(`${name}Event`, about, `\n  extends CloudEvent<"${name}">`);
}

function cloudEvent(events) {
  const { properties, required } = envelope(events);
  const own = { type: { $ref: "Type", description: "Which event it is." }, ...properties };
  const given = { properties: own, required: ["type", ...required] };
  const about = { ...given, description: "What every event has." };
  return declare("CloudEvent", about, "<Type extends string>");
}

function table(name, about, all, named) {
  const lines = all.map((each) => `  "${each.name}": ${named(each)};\n`);
  return `/** ${about} */\nexport interface ${name} {\n${lines.join("")}}`;
}

function models() {
  const { messages, events } = read();
  const parts = [
    HEAD,
    JSON_VALUE,
    ...shared([...messages, ...events]).map(([name, schema]) => declare(name, schema)),
    ...messages.map(({ schema }) => declare(schema.title, schema)),
    cloudEvent(events),
    ...events.map(event),
    table("Messages", "What each task takes.", messages, ({ schema }) => schema.title),
    table("Events", "The events, by type.", events, ({ name }) => `${name}Event`),
  ];
  return `${parts.join("\n\n")}\n`;
}

if (process.argv.includes("--print")) process.stdout.write(models());
else writeFileSync(MODELS, models());
