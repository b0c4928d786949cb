// openai's client for JavaScript, unchanged: node openai_client.mjs URL KEY MODEL
// Prints one JSON object that tests/clients/test_node_client.py checks.
import OpenAI from "openai";

const [url, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/openai/v1`, apiKey });

const answer = await client.embeddings.create({ model, input: ["iPhone", "Samsung"] });
const models = [];
for await (const one of client.models.list()) models.push(one.id);

let error;
try {
  await client.embeddings.create({ model: "gpt-2", input: "a" });
} catch (raised) {
  error = { name: raised.constructor.name, status: raised.status, code: raised.code, param: raised.param };
}
console.log(
  JSON.stringify({
    vectors: answer.data.map((row) => Array.from(row.embedding)),
    usage: answer.usage,
    models,
    error,
  }),
);
